"""Private names of Ray that the pipelines use. Tests of this folder fail when Ray changes them."""
