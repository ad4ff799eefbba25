#!/usr/bin/env python3
"""Work that writes a line a second to the sink, each with the epoch that it was started with. It ends when the sink refuses it.

Evenkeel gives EVENKEEL_RESOURCE, EVENKEEL_EPOCH and EVENKEEL_WORKER; the resource file gives SINK.
"""

import http.client
import itertools
import os
import sys
import time

resource, epoch, worker = (os.environ[name] for name in ("EVENKEEL_RESOURCE", "EVENKEEL_EPOCH", "EVENKEEL_WORKER"))

for turn in itertools.count(1):
    sink = http.client.HTTPConnection(os.environ["SINK"], timeout=5)
    try:
        sink.request("POST", f"/{resource}", f"line {turn} by {worker}", {"Epoch": epoch})
        answer = sink.getresponse()
        said = answer.read().decode().strip()
    except (OSError, http.client.HTTPException) as error:
        # Whether it was kept is not known. The same line is not sent again, so none is kept twice.
        print(f"line {turn}: {error}", flush=True)
    else:
        if answer.status == 409:
            # Another owner has written: there is nothing more for this one to do, whatever it still believes.
            sys.exit(f"line {turn} was refused: {said}")
        print(f"line {turn}: {said or 'kept'}", flush=True)
    finally:
        sink.close()
    time.sleep(1)
