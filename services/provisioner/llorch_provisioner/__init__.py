"""The provisioner: makes engines and models present on its node, and says what it did."""
