"""How fast a model runs here, and how near that is to what this machine could do at best."""
