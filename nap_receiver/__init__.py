"""nap: `git push nap master` to a running, announced app. The story is told in `receiver`."""
