"""What the workers of test_distributed run in place of the encoder, and a driver that is killed: `ray_words.py ...`."""

import os
import sys
import time
from pathlib import Path

from word_encoder import WordEncoder

import m2bert.search.encoder


class WatchedEncoder(WordEncoder):
    """Writes the process that embeds, and how many documents so far, to the folder EMBEDDING."""

    def __init__(self, model, device=None):
        super().__init__(model, device)
        if Path(os.environ.get("EMBEDDING", ""), "other-weights").exists():
            self.fingerprint = "another"

    def encode_documents(self, texts, vectors=16):
        if any(text.startswith("poison") for text in texts):
            raise ValueError("the vector of poison is not finite")
        folder = os.environ.get("EMBEDDING")
        if folder:
            with open(Path(folder, str(os.getpid())), "a") as file:
                file.write("".join(f"{text.split()[0]}\n" for text in texts))
            time.sleep(0.3)
        return super().encode_documents(texts, vectors)


def stand_in():
    m2bert.search.encoder.Encoder = WatchedEncoder


def connect(address, **init):
    """Connect as `m2bert index --ray` does, to workers with this encoder."""
    import ray

    paths = os.pathsep.join(path for path in sys.path if path)
    env = {"PYTHONPATH": paths, "EMBEDDING": os.environ.get("EMBEDDING", "")}
    hook = {"env_vars": env, "worker_process_setup_hook": "ray_words.stand_in"}
    return ray.init(address, runtime_env=hook, log_to_driver=False, logging_level="error", **init)


if __name__ == "__main__":
    from m2bert.search.distributed import ClusterIndex
    from m2bert.search.table import Table

    def stop(self, fragments, ids, paths):
        print(len(fragments), flush=True)
        time.sleep(600)

    stand_in()
    Table.commit = stop
    address, folder, files = sys.argv[1:]
    connect(address)
    ClusterIndex.open(folder, "words", ray=address).add(files)
