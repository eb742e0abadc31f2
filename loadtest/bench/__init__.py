"""The benchmark: one machine, one run, everything interleaved; see loadtest/README.md."""
