"""Run a Mask R-CNN on images, videos, webcams or streams, and draw its detections.

python demo.py --config-file configs/mrcnn_R101.yaml --input photos/ --output annotated/ --opts MODEL.WEIGHTS model.pth
python demo.py --config-file configs/mrcnn_R101.yaml --video-input in.mp4 --output out.mp4 --opts MODEL.WEIGHTS ...
python demo.py --config-file configs/mrcnn_R101.yaml --webcam --show --output webcam.mp4 --opts MODEL.WEIGHTS ...
"""

import os
import signal
import sys

# Until the imports are done, Ctrl-C ends the program at once: Python's own handler would raise KeyboardInterrupt inside
# of them, with a long traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted\n"), os._exit(130)))

# Importing the plugin chooses the engine, so it comes before anything of detectron2.
import d2_maskrcnn  # noqa: F401
from d2_maskrcnn.cli.demo import main
from d2_maskrcnn.errors import run_main

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run_main(main))
