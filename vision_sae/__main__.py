"""python -m vision_sae"""

from vision_sae.cli import main

main()
