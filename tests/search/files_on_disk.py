"""Small files of the formats that have no writer here."""

from pathlib import Path

KEY = "<" + "00" * 32 + ">"
LOCKED = f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O {KEY} /U {KEY} >> /ID [<00> <00>]"


def write_pdf(path: Path, *pages: list[tuple[float, float, str]], trailer: str = "") -> Path:
    """Write pages of lines (left, baseline, text) in Courier of 10 points (6 a character); `*word*` is bold."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    for font in ("Courier", "Courier-Bold"):
        objects.append(f"<< /Type /Font /Subtype /Type1 /BaseFont /{font} /Encoding /WinAnsiEncoding >>")
    kids = []
    for lines in pages:
        stream = "".join(f"BT 1 0 0 1 {x} {y} Tm {_shown(text)} ET\n" for x, y, text in lines)
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        kids.append(f"{len(objects) + 1} 0 R")
        fonts = "/Resources << /Font << /R 3 0 R /B 4 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] {fonts} /Contents {len(objects)} 0 R >>")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("cp1252")
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    count = len(objects) + 1
    end = f"xref\n0 {count}\n0000000000 65535 f \n{table}trailer << /Size {count} /Root 1 0 R {trailer} >>\n"
    path.write_bytes(data + f"{end}startxref\n{len(data)}\n%%EOF".encode())
    return path


def _shown(text: str) -> str:
    """Return the operators that draw a line: every part between asterisks in bold."""
    parts = enumerate(text.replace("(", r"\(").replace(")", r"\)").split("*"))
    return " ".join(f"/{chr(82 - 16 * (number % 2))} 10 Tf ({part}) Tj" for number, part in parts)
