"""What the tool asks of setuptools below 82."""
