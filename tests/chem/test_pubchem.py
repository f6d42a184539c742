"""The two-file join against a dictionary join, and downloads that break, resume and are checked."""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars
import pytest

from seqtune.chem import commands, pipeline, pubchem
from seqtune.chem.download import fetch
from seqtune.errors import DataError


def join(first, second, out, **limits):
    return commands.pubchem(out, "none", first, second, **limits)


def write(path, rows: dict[int, str]):
    text = "".join(f"{cid}\t{value}\n" for cid, value in rows.items()).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture
def files(tmp_path):
    """5,000 compounds with gaps on both sides."""
    rng = random.Random(0)
    smiles = {i: "C" * rng.randrange(1, 30) + rng.choice(["", ".Cl", "O"]) for i in range(1, 5001) if rng.random() > 0.1}
    names = {i: f'name "{i}",ane' for i in range(1, 5001) if rng.random() > 0.2}
    return smiles, names, write(tmp_path / "CID-SMILES.gz", smiles), write(tmp_path / "CID-IUPAC.gz", names)


@pytest.mark.parametrize("block", [50, 997, 10**7])
def test_equals_a_dictionary_join_whatever_the_blocks(files, tmp_path, monkeypatch, block):
    monkeypatch.setattr(pubchem, "BLOCK", block)
    smiles, names, first, second = files
    counts = join(first, second, tmp_path / "out.parquet", max_smiles=25, one_fragment=True)
    expected = [(cid, text, names[cid]) for cid, text in smiles.items() if cid in names and len(text) <= 25 and "." not in text]
    assert polars.read_parquet(tmp_path / "out.parquet").rows() == expected
    both = [text for cid, text in smiles.items() if cid in names]
    assert counts == {
        "records in CID-SMILES.gz": len(smiles), "records in CID-IUPAC.gz": len(names),
        "SMILES too long": sum(len(t) > 25 for t in both),
        "several fragments": sum("." in t and len(t) <= 25 for t in both), "kept": len(expected),
    }  # fmt: skip


def test_the_command_writes_parquet_that_fit_reads(files, tmp_path):
    out = tmp_path / "pairs.parquet"
    command = [
        sys.executable,
        "-m",
        "seqtune",
        "data",
        "pubchem",
        "--preset",
        "none",
        "--out",
        str(out),
        "--smiles-file",
        str(files[2]),
    ]
    done = subprocess.run([*command, "--names-file", str(files[3])], capture_output=True, text=True, check=True)
    assert f"{out}: " in done.stdout
    assert polars.read_parquet(out).columns == ["cid", "smiles", "iupac"]
    wrong = subprocess.run([*command[:5], "--out", str(tmp_path / "x.xls")], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "must end in .csv, .tsv, .parquet" in wrong.stderr


def test_broken_files_are_named(files, tmp_path):
    smiles, _, first, second = files
    out = tmp_path / "out.parquet"
    with pytest.raises(DataError, match=r"'.*absent.gz' does not exist"):
        join(tmp_path / "absent.gz", second, out)
    broken = tmp_path / "broken.gz"
    broken.write_bytes(first.read_bytes()[:-500])
    with pytest.raises(DataError, match="cannot be unpacked"):
        join(broken, second, out)
    shuffled = write(tmp_path / "shuffled", dict(sorted(smiles.items(), key=lambda item: item[1])))
    with pytest.raises(DataError, match="is not ascending by CID"):
        join(shuffled, second, out)
    twice = tmp_path / "twice"
    twice.write_text("1\tC\n2\tCC\n2\tCCC\n")
    with pytest.raises(DataError, match="is not ascending by CID"):
        join(twice, second, out)
    wrong = tmp_path / "wrong"
    wrong.write_text("CCO\t1\n")
    with pytest.raises(DataError, match="not lines of CID <tab> text near 'CCO"):
        join(wrong, second, out)
    with pytest.raises(DataError, match="no row is kept; records in other: 1"):
        join(write(tmp_path / "other", {10**9: "C"}), second, out)
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("kind", [".parquet", ".csv"])
def test_a_table_that_cannot_be_written_ends_the_work(tmp_path, kind):
    frame = polars.DataFrame({"smiles": ["C"] * 1000})

    def fill():
        with pipeline._Writer(tmp_path / "absent" / f"table{kind}") as writer:
            for _ in range(1000):
                writer.write(frame)

    with pytest.raises(FileNotFoundError):
        fill()


@pytest.fixture
def server():
    """Serves one file with ranges; breaks off after `limit` bytes of a request while `limit` is set."""
    content = random.Random(0).randbytes(300_000)

    class Handler(BaseHTTPRequestHandler):
        limit: int | None = None
        checksum = hashlib.md5(content).hexdigest()

        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self):
            if self.path.endswith(".md5"):
                body = f"{Handler.checksum}  file.gz\n".encode()
                self.send_response(200)
            else:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                body = content[start:]
                self.send_response(206)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: Handler.limit] if not self.path.endswith(".md5") else body)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/file.gz", content, Handler
    httpd.shutdown()


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    url, content, handler = server
    handler.limit = 100_000
    with pytest.raises(DataError, match="goes on where it stopped"):
        fetch(url, tmp_path)
    handler.limit = None
    assert 0 < (tmp_path / "file.gz.part").stat().st_size < len(content)
    assert fetch(url, tmp_path).read_bytes() == content
    assert not (tmp_path / "file.gz.part").exists()


def test_a_wrong_checksum_is_refused(server, tmp_path):
    url, _, handler = server
    handler.checksum = "0" * 32
    with pytest.raises(DataError, match="the server says 0000"):
        fetch(url, tmp_path)
    assert not list(tmp_path.iterdir())


def answering(head: dict, get: dict, note: bytes = b"", body: bytes = b""):
    """A server with odd headers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_HEAD(self):
            self.reply(head)

        def do_GET(self):
            is_note = self.path.endswith(".md5")
            self.reply({} if is_note else get)
            self.wfile.write(note if is_note else body)

        def reply(self, headers):
            self.send_response(206 if "Content-Range" in headers else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    return httpd, f"http://127.0.0.1:{httpd.server_port}/file.gz"


BODY = b"0123456789"
NOTE = hashlib.md5(BODY).hexdigest().upper().encode() + b" *file.gz\n"
LENGTH = {"Content-Length": "10"}


@pytest.mark.parametrize(
    ("head", "get", "note", "error"),
    [
        ({}, {}, NOTE, "does not say how long it is"),
        ({"Content-Length": "many"}, LENGTH, NOTE, "does not say how long it is .*many"),
        ({"Content-Length": "²"}, LENGTH, NOTE, "does not say how long it is"),
        ({"Content-Length": "-1"}, LENGTH, NOTE, "does not say how long it is"),
        (LENGTH, {}, NOTE, "does not say how long it is"),
        ({"Content-Length": "11"}, LENGTH, NOTE, "the server said 11 bytes, and sends 10"),
        ({"Content-Length": "11"}, {"Content-Length": "11"}, NOTE, "goes on where it stopped"),
        ({"Content-Length": "9"}, {"Content-Length": "9"}, NOTE, "what arrived has MD5"),
        (LENGTH, LENGTH, b"", "holds no checksum"),
        (LENGTH, LENGTH, b"<html>not found</html>", "holds no checksum but b'<html>"),
        (LENGTH, LENGTH, b"\xff" * 100_000, "holds no checksum"),
        (LENGTH, LENGTH, b"0" * 32, "the server says 000"),
    ],
)
def test_lengths_and_checksums_that_are_missing_or_wrong(tmp_path, head, get, note, error):
    httpd, url = answering(head, get, note, BODY)
    with pytest.raises(DataError, match=error):
        fetch(url, tmp_path)
    httpd.shutdown()
    assert not (tmp_path / "file.gz").exists()


@pytest.mark.parametrize("part", [b"", b"0123", b"of an older, longer file"])
def test_what_was_begun_is_not_put_together_wrongly(tmp_path, part):
    """A server that sends all of it where the rest was asked for, and a beginning of something else."""
    (tmp_path / "file.gz.part").write_bytes(part)
    httpd, url = answering(LENGTH, LENGTH | {"Content-Range": "bytes 0-9/10"}, NOTE, BODY)
    assert fetch(url, tmp_path).read_bytes() == BODY
    httpd.shutdown()


def test_no_server(tmp_path):
    with pytest.raises(DataError, match="cannot be downloaded"):
        fetch("http://127.0.0.1:9/file.gz", tmp_path)
