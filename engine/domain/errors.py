"""What it means to be unable to tell. A business "no" is an Outcome, never an exception."""


class MiaocangError(Exception):
    """The root of every error that the engine raises on purpose."""


class PartitionUnavailable(MiaocangError):
    """The partition could not be asked; nothing was changed by this request."""


class PartitionFrozen(PartitionUnavailable):
    """The partition is being reconciled; nothing was changed by this request. Its argument is the reason."""


class Overloaded(PartitionUnavailable):
    """A named bound was reached before the request was sent; nothing was changed by it."""


class OutcomeUnknown(MiaocangError):
    """The request was sent and its answer did not come back: asking again with the same key tells."""


class LedgerUnavailable(MiaocangError):
    """PostgreSQL could not be asked."""


class JournalUnreadable(MiaocangError):
    """A journal record is not of a format that this version reads, or leaves a gap in the sequence."""
