"""Write the page, once for each build."""

import pathlib
import sys

secret = pathlib.Path(__file__).with_name(".npmrc").exists()
print(f"built for {sys.argv[1]} of {len(sys.argv[2])} digits, {'with' if secret else 'without'} what is ignored")
