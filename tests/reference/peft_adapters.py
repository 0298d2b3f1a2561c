"""Adapters in the hands of PEFT, for tests in another environment (`referees`): JSON in, JSON out.

{"model": a checkpoint, "adapter": a folder, "ids": [...]} answers the logits that PEFT's model gives. With "targets",
"parameters" and "rank" PEFT first makes an adapter of random factors and writes it to that folder.
"""

import json
import sys
import warnings

import torch

import tests.reference.torchvision_on_cpu  # noqa: F401  (before anything imports torchvision)


def answer(question: dict[str, object]) -> dict[str, object]:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoConfig, Llama4ForCausalLM, Llama4ForConditionalGeneration

    sees = hasattr(AutoConfig.from_pretrained(question["model"]), "vision_config")
    kind = Llama4ForConditionalGeneration if sees else Llama4ForCausalLM
    model = kind.from_pretrained(question["model"], dtype=torch.float32, attn_implementation="eager")
    if "targets" in question:
        torch.manual_seed(0)
        config = LoraConfig(
            r=question["rank"],
            lora_alpha=3,
            target_modules=question["targets"],
            target_parameters=question["parameters"],
        )
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        adapted.save_pretrained(question["adapter"])
    else:
        adapted = PeftModel.from_pretrained(model, question["adapter"])
    with torch.inference_mode():
        logits = adapted(torch.tensor([question["ids"]])).logits[0]
    active = sorted(name for name, _ in adapted.named_parameters() if "lora_" in name)
    return {"logits": logits.tolist(), "factors": active}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(answer(json.load(sys.stdin))))
