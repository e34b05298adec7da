"""Runs in an interpreter that has torch and transformers: python writing_reference.py FOLDER.

For each case in FOLDER/cases.json a random model in FOLDER/name, and what `generate` writes in FOLDER/name.json.
"""

import json
import sys
from pathlib import Path

import torch
import transformers


def main(folder: Path) -> None:
    """Makes the models, and lets them write."""
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        torch.manual_seed(case["seed"])
        config = transformers.CONFIG_MAPPING[case["model_type"]](**case["config"])
        model = getattr(transformers, case["class"])(config).eval()
        with torch.no_grad():
            for title, parameter in model.named_parameters():
                if parameter.requires_grad:  # no sinusoids
                    around = 1.0 if parameter.ndim == 1 and title.endswith("weight") else 0.0
                    parameter.copy_(around + 0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        model.generation_config.forced_eos_token_id = None  # BART would end every text at the limit
        inputs = {key: torch.tensor(case[key]) for key in ("input_ids", "attention_mask")}
        written = {}
        for how in case["how"]:
            settings = transformers.GenerationConfig(
                max_new_tokens=case["new"], do_sample=False, pad_token_id=0, bos_token_id=1,
                decoder_start_token_id=1, return_dict_in_generate=True, output_scores=True, **how,
            )  # fmt: skip
            with torch.inference_mode():
                found = model.generate(**inputs, generation_config=settings)
            before = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
            scores = found.sequences_scores.tolist() if how["num_beams"] > 1 else None
            written[json.dumps(how)] = {"tokens": found.sequences[:, before:].tolist(), "scores": scores}
        (folder / f"{name}.json").write_text(json.dumps(written))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
