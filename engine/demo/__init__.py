"""The demo: a livestream flash sale on real order data, played through the public HTTP interfaces alone."""
