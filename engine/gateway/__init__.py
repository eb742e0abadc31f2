"""The checkout's HTTP interface: holds, payments, cancellations and availability. It never opens the ledger."""
