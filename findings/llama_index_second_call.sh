#!/usr/bin/env bash
# LlamaIndex, embeddings of a Hugging Face endpoint: the second synchronous call fails with "Event loop is closed".
#
# Expected: get_text_embedding can be called any number of times on one object, as the base class promises.
#
# What happens: the class has one asynchronous client, and each synchronous call runs it by asyncio.run, in an event loop of
# its own. The client keeps the first call's connection open for the next one. That connection belongs to a loop that is
# closed by then, so the second call raises RuntimeError, where the server keeps connections alive, as most do. With
# headers={"Connection": "close"} all calls work.
#
# Versions: llama-index-embeddings-huggingface-api 0.6.0, huggingface_hub 2.4.0 (Python 3.11). Source:
# HuggingFaceInferenceAPIEmbedding._get_text_embedding.
# The script embeds twice at a small local server, with and without the header, and fails if both work.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llama-index-embeddings-huggingface-api==0.6.0 huggingface_hub==2.4.0 numpy
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from llama_index.embeddings.huggingface_api import HuggingFaceInferenceAPIEmbedding


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "15")
        self.end_headers()
        self.wfile.write(b"[[1.0,2.0,3.0]]")

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("llama-index-embeddings-huggingface-api", version("llama-index-embeddings-huggingface-api"))
print("huggingface_hub", version("huggingface_hub"))
outcomes = {}
for name, options in {"as it is": {}, "Connection: close": {"headers": {"Connection": "close"}}}.items():
    embedding = HuggingFaceInferenceAPIEmbedding(model_name=f"http://127.0.0.1:{server.server_port}", **options)
    found = []
    for call in ("first", "second"):
        try:
            found.append(f"{call} call {embedding.get_text_embedding('a')}")
        except RuntimeError as error:
            found.append(f"{call} call RuntimeError: {error}")
    outcomes[name] = found
    print(f"{name}: {'; '.join(found)}")
assert outcomes["as it is"][1] == "second call RuntimeError: Event loop is closed", "the second call does otherwise now"
assert "RuntimeError" not in outcomes["Connection: close"][1], "closed connections do not help now"
PY
