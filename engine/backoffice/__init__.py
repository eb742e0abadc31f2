"""The back office's HTTP interface: sales, stock and search for operators, the feed for the ERP, the control room."""
