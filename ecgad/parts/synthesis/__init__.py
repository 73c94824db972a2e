"""Known damage to put into real records: what a detector is taught, chosen and tested with."""
