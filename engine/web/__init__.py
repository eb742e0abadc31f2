"""What gateway and back office share of HTTP: keys, problems, bodies, routes, the order of checks, the server."""
