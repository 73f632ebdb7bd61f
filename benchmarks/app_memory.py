"""Memory of the server of the local page, `autoencode app`, by the number of samples drawn.

    python benchmarks/app_memory.py RUN INDEX --samples 24000

Draws samples by the hundred, as a person does who moves the temperature, and prints the memory of the server
now and then. Pages of the pack that it maps are not counted, as the system can take them back.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal

from app_load import own_mb, started

AT_ONCE, REPORTS = 128, 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("index")
    parser.add_argument("--samples", type=int, default=24_000)
    asked = parser.parse_args()
    process, port, token = started(asked.run, asked.index)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    turns = -(-asked.samples // AT_ONCE)
    try:
        for turn in range(turns + 1):
            if turn % (turns // REPORTS) == 0:
                print(f"{turn * AT_ONCE:7,} samples: {own_mb(process.pid):6.0f} MB", flush=True)
            body = json.dumps({"count": AT_ONCE, "seed": turn, "temperature": 0.5 + turn / turns})
            connection.request("POST", "/api/generate", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            picture = json.loads(content)["pictures"][-1]["id"]
            connection.request("GET", f"/images/{picture}", headers=headers)
            assert connection.getresponse().read().startswith(b"\x89PNG")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


if __name__ == "__main__":
    main()
