"""People in a live, driven by Locust against a real engine, and held against what the engine keeps in the end."""
