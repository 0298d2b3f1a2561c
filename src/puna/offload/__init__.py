"""Routed experts that live off the device: on disk or in host memory, the hot ones cached, the next ones foreseen."""
