"""What drives the engine hard: the benchmark, people in a live, and the systems that it is compared with."""
