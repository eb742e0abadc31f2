"""What the people behind the host do: set the sale up, pause it, put more on sale, close it, audit it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from engine.demo.caller import Caller, Unexpected


@dataclass(frozen=True, slots=True)
class Levels:
    """Units of the whole sale, by state."""

    allocated: int = 0
    withheld: int = 0
    available: int = 0
    held: int = 0
    settled: int = 0


class Operator:
    """One sale through the back office. Each call raises NoAnswer, or Unexpected for an answer that is no yes."""

    def __init__(self, backoffice: Caller, sale_id: str) -> None:
        self._backoffice = backoffice
        self._path = f"/ops/v1/sales/{quote(sale_id)}"

    async def define(self, document: Mapping[str, Any]) -> None:
        """Create the sale, a draft."""
        await self._change("PUT", self._path, document)

    async def transition(self, name: str) -> None:
        """`open`, `pause`, `resume` or `close` the sale."""
        await self._change("POST", f"{self._path}/{name}")

    async def put_more_on_sale(self, document: Mapping[str, Any]) -> None:
        """Apply a stock document, once for its id however often it is sent."""
        await self._change("POST", f"{self._path}/stock", document)

    async def read_sale(self) -> Mapping[str, Any]:
        """The sale with each SKU's levels."""
        return await self._change("GET", self._path)

    async def read_levels(self) -> Levels:
        """The sale's levels, summed over its SKUs."""
        sale = await self.read_sale()
        return Levels(*(sum(sku[name] for sku in sale["skus"]) for name in Levels.__slots__))

    async def audit(self) -> Mapping[str, Any]:
        """Every promise that can be recomputed: `holds`, and `checks` with `name`, `holds`, `detail`."""
        return await self._change("GET", f"{self._path}/audit")

    async def _change(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        answer = await self._backoffice.ask(method, path, body)
        if not answer.is_yes:
            raise Unexpected(f"{method} {path}", answer)
        return answer.body
