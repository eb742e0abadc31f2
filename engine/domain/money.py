"""Money in integers of the currency's minor unit, exact at every size that the contract allows."""

from collections.abc import Sequence


def split_by_value(values_minor: Sequence[int], total_minor: int) -> list[int]:
    """Split `total_minor` over lines in proportion to their values, so that the parts add up exactly.

    Each part is the floor of its exact share; the units left over go one each to the largest remainders, the earlier
    line first among equals (the largest-remainder method). Where every value is zero the total must be zero too.
    """
    whole = sum(values_minor)
    if whole == 0:
        if total_minor != 0:
            raise ValueError("nothing to split the total over")
        return [0] * len(values_minor)
    shares = [value * total_minor // whole for value in values_minor]
    left_over = total_minor - sum(shares)
    by_remainder = sorted(
        range(len(values_minor)), key=lambda line: (-(values_minor[line] * total_minor % whole), line)
    )
    for line in by_remainder[:left_over]:
        shares[line] += 1
    return shares
