"""`miaocang up` with stand-ins for the rooms: the supervisor and both stores are real, what they serve is not.

Run as `stand_in_engine.py DATA_DIR GATEWAY_PORT BACKOFFICE_PORT GATEWAYS`.
"""

import asyncio
import sys
from pathlib import Path

from engine.runtime.refusals import StartRefused
from engine.runtime.supervisor import Supervisor, UpOptions
from engine.settings import read_settings

ROOM = str(Path(__file__).with_name("stand_in_room.py"))
COMMANDS = {kind: (sys.executable, ROOM, kind) for kind in ("migrate", "gateway", "worker", "backoffice")}


async def run() -> None:
    data_dir, gateway_port, backoffice_port, gateways = sys.argv[1:]
    options = UpOptions("127.0.0.1", int(gateway_port), int(backoffice_port), int(gateways))
    await Supervisor(read_settings(Path(data_dir)), options, COMMANDS).run()


if __name__ == "__main__":
    try:
        asyncio.run(run())
    except StartRefused as refusal:
        raise SystemExit(f"miaocang: {refusal}") from None
