"""What orders are found by: a number of an order's era and of its digest, buyer, reference or payment.

Texts that come in no order make an index that costs ever more to write as it grows beyond the memory. With the era in
the upper half, what is written stays within the newest era's few megabytes; with 32 bits of the text in the lower half
rather than the text itself, an entry is a third of its size. Who searches asks for each era there was, and for the text
as well: two texts may have one number.
"""

from zlib import crc32

ERA_SHIFT = 32
"""A key is `era << ERA_SHIFT | text_number(text)`."""


def text_number(text: str) -> int:
    """The lower half of a text's key, the same in every era."""
    return crc32(text.encode(errors="surrogatepass"))  # what cannot be stored is for the database to refuse
