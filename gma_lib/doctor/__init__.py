"""What this machine has: before an installation (``installation``), and after it (``checks``)."""
