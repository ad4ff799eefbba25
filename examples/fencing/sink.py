#!/usr/bin/env python3
"""A sink that checks the epoch: it keeps lines of text for resources, and takes none from an owner that has been succeeded.

    sink.py [--listen HOST:PORT] [--store FILE]

    POST /RESOURCE, with the header Epoch and a line of text    204 kept; 409 refused: a higher epoch has written
    GET  /RESOURCE                                              what is kept: number, epoch and text of each line

The check is made here, not in the writer: a writer can be paused between its own check and its write, and what it sent may arrive late.
Nothing but Python's standard library is needed.
"""

import argparse
import contextlib
import sqlite3
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGEST_EPOCH = 2**63 - 1
LARGEST_TEXT = 64 * 1024
TABLES = """
    CREATE TABLE IF NOT EXISTS highest (resource TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS lines (
        number INTEGER PRIMARY KEY AUTOINCREMENT, resource TEXT NOT NULL, epoch INTEGER NOT NULL, text TEXT NOT NULL);
"""
# Changes a row unless a higher epoch stands in it. Equal is allowed: one owner writes many times.
RAISE = """
    INSERT INTO highest (resource, epoch) VALUES (?, ?)
    ON CONFLICT (resource) DO UPDATE SET epoch = excluded.epoch WHERE excluded.epoch >= highest.epoch
"""


class Store:
    """The lines, and beside them the highest epoch that has written for each resource."""

    def __init__(self, path):
        self.path = path
        with self.open() as store:
            store.executescript(TABLES)

    def open(self):
        return contextlib.closing(sqlite3.connect(self.path, timeout=30))

    def write(self, resource, epoch, text):
        """Keeps the line, on disk, and gives None; or keeps nothing and gives the higher epoch."""
        # One transaction. The first statement takes SQLite's write lock, so nobody gets between the check and the write.
        with self.open() as store, store:
            if store.execute(RAISE, (resource, epoch)).rowcount == 1:
                store.execute("INSERT INTO lines (resource, epoch, text) VALUES (?, ?, ?)", (resource, epoch, text))
                return None
            return store.execute("SELECT epoch FROM highest WHERE resource = ?", (resource,)).fetchone()[0]

    def read(self, resource):
        with self.open() as store:
            return store.execute("SELECT number, epoch, text FROM lines WHERE resource = ? ORDER BY number", (resource,)).fetchall()


class Handler(BaseHTTPRequestHandler):
    # A writer that is paused amid its request does not hold a thread for ever.
    timeout = 30
    store = None

    def do_POST(self):
        epoch, length = number(self.headers.get("Epoch")), number(self.headers.get("Content-Length"))
        if epoch is None or not 0 < epoch <= LARGEST_EPOCH:
            return self.answer(400, "the header Epoch must be a number from 1\n")
        if length is None or length > LARGEST_TEXT:
            return self.answer(413, f"the text must have a length, of at most {LARGEST_TEXT} bytes\n")
        body = self.rfile.read(length)
        if len(body) < length:
            return self.answer(400, "the text is cut off\n")
        text = " ".join(body.decode(errors="replace").split())
        higher = self.store.write(self.path[1:], epoch, text)
        if higher is None:
            return self.answer(204)
        print(f"refused {self.path[1:]} {epoch}: {higher} has written", flush=True)
        return self.answer(409, f"epoch {epoch} is over: {higher} has written\n")

    def do_GET(self):
        self.answer(200, "".join(f"{number} {epoch} {text}\n" for number, epoch, text in self.store.read(self.path[1:])))

    def answer(self, status, text=""):
        body = text.encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Refusals are worth a line; that it was asked is not."""


def number(text):
    """Plain digits only. Epochs are compared as numbers: as text, 9 would be more than 10."""
    return int(text) if text and len(text) < 20 and text.isascii() and text.isdigit() else None


def main():
    parser = argparse.ArgumentParser(description="A sink that checks the epoch.")
    parser.add_argument("--listen", default="127.0.0.1:8090", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--store", default="sink.db", metavar="FILE")
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")
    Handler.store = Store(options.store)
    with ThreadingHTTPServer((host, int(port)), Handler) as server:
        print(f"listening on {host}:{server.server_port}, keeping {options.store}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
