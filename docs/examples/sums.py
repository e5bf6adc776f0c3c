"""Three calls, two batches: `shmbatch run docs/examples/sums.py`."""

import asyncio

import shmbatch

app = shmbatch.App()


@app.function()
@shmbatch.batched(max_batch_size=2, wait_ms=1000)
async def batch_add(xs: list[int], ys: list[int]) -> list[int]:
    return [x + y for x, y in zip(xs, ys, strict=True)]


@app.local_entrypoint()
async def main() -> None:
    inputs = [(1, 300), (2, 200), (3, 100)]
    async for result in batch_add.starmap.aio(inputs):
        print(f"Sum: {result}")


if __name__ == "__main__":  # `python docs/examples/sums.py` does the same
    with app.run():
        asyncio.run(main())
