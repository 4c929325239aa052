"""How psclap runs on clusters: an image, manifests, scripts, and the commands in them. docs/clusters.md explains."""
