import asyncio
import os

import websockets

there = set()


async def talk(socket):
    there.add(socket)
    try:
        async for line in socket:
            websockets.broadcast(there, line)
    finally:
        there.remove(socket)


async def main():
    async with websockets.serve(talk, "0.0.0.0", int(os.environ["PORT"])):
        await asyncio.Future()


asyncio.run(main())
