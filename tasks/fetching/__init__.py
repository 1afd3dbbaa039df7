"""Where data and models come from: wheels of the package index, the hub, folders."""
