"""`python -m engine` is `miaocang`, and how the supervisor starts every other process."""

import gc
import sys

SERVING = frozenset({"gateway", "worker", "backoffice"})

if __name__ == "__main__":
    gc.disable()  # looking for garbage takes a fifth of all importing, and what is imported is none
    if SERVING.intersection(sys.argv[1:2]):
        # structlog would import it for tracebacks in colours, which a log file has none of: a tenth of a start
        sys.modules["rich"] = None  # type: ignore[assignment]  # the language's way to say that it is not there
    from engine.cli import main

    gc.enable()
    main()
