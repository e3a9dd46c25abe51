"""The topology of representations, depth by depth."""
