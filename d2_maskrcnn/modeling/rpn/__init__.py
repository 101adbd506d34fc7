"""Region proposal network: anchors, head, proposals."""
