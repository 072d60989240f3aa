"""ITC beside the plain form that the paper's authors published, and a whole ALBEF step beside its encoder passes.

The plain form is written here: it holds every logit and every target. Each step is forward and backward.
`python albef.py CASE` prints the memory growth of one case of ITC in MB.
"""

import sys

import torch
import torch.nn.functional as F
from measure import Row, growth_in_a_fresh_process, growth_mb, interleaved_ms

from vlnotes.albef import ALBEF, itc_loss
from vlnotes.text import IGNORE, mask_tokens

TEMPERATURE, WEIGHT = 0.07, 0.4
BATCH, DIM, QUEUE = 256, 256, 65_536
STEP_BATCH, PIXELS, TOKENS, VOCABULARY = 64, 64, 24, 512


def plain_itc(image, text, teacher_image, teacher_text, image_queue, text_queue, temperature, weight):
    """Equation 6 as it stands: four matrices of logits, and two of targets as large. Queues are (D, K)."""
    with torch.no_grad():
        images = torch.cat([teacher_image.T, image_queue.clone()], dim=1)  # (D, B + K)
        texts = torch.cat([teacher_text.T, text_queue.clone()], dim=1)
        hard = torch.zeros(len(image), images.shape[1]).fill_diagonal_(1)
        to_text = weight * F.softmax(teacher_image @ texts / temperature, dim=1) + (1 - weight) * hard
        to_image = weight * F.softmax(teacher_text @ images / temperature, dim=1) + (1 - weight) * hard
    i2t = -(F.log_softmax(image @ texts / temperature, dim=1) * to_text).sum(1).mean()
    t2i = -(F.log_softmax(text @ images / temperature, dim=1) * to_image).sum(1).mean()
    return (i2t + t2i) / 2


def itc_step(peer=False):
    """A step of ITC on given features, with a temperature that learns; returns the loss."""
    dice = torch.Generator().manual_seed(0)
    sizes = [BATCH] * 4 + [QUEUE] * 2
    features = [F.normalize(torch.randn(size, DIM, generator=dice), dim=1) for size in sizes]
    temperature = torch.tensor(TEMPERATURE, requires_grad=True)
    learning = [features[0].requires_grad_(), features[1].requires_grad_(), temperature]
    if peer:
        features[4:] = [queue.T.contiguous() for queue in features[4:]]  # as the authors keep them

    def step():
        for one in learning:
            one.grad = None
        if peer:
            loss = plain_itc(*features, temperature, WEIGHT)
        else:
            loss = itc_loss(*features, temperature=temperature, distill_weight=WEIGHT)
        loss.backward()
        return loss.detach()

    return step


def albef_steps():
    """The whole step of `ALBEF.tiny`, and each pass of an encoder that no ALBEF can do without, alone."""
    dice = torch.Generator().manual_seed(0)
    model = ALBEF.tiny(VOCABULARY, size=PIXELS).train()
    student, teacher = model.student, model.teacher
    image = torch.randint(0, 256, (STEP_BATCH, 3, PIXELS, PIXELS), generator=dice, dtype=torch.uint8)
    input_ids = torch.randint(5, VOCABULARY, (STEP_BATCH, TOKENS), generator=dice)
    mask = torch.ones_like(input_ids)
    masked, labels = mask_tokens(input_ids, model.vocabulary, generator=dice)
    with torch.no_grad():
        seen, read = student.see(image).tokens, student.read(input_ids, mask).tokens
    seen.requires_grad_()  # gradients flow on into the towers
    thrice = seen.detach().repeat(3, 1, 1).requires_grad_(), read.repeat(3, 1, 1).requires_grad_(), mask.repeat(3, 1)

    def learning(forward):
        def step():
            model.zero_grad(set_to_none=True)
            seen.grad = thrice[0].grad = thrice[1].grad = None
            found = forward()
            found = found if isinstance(found, tuple) else (found,)
            torch.autograd.backward(found, [torch.ones_like(one) for one in found])

        return step

    passes = {
        "vision": learning(lambda: tuple(student.see(image))),
        "vision, teacher": torch.no_grad()(lambda: teacher.see(image)),
        "text": learning(lambda: tuple(student.read(input_ids, mask))),
        "text, teacher": torch.no_grad()(lambda: teacher.read(input_ids, mask)),
        "fusion of 3B pairs": learning(lambda: model.match(*thrice)),
        "hidden words": learning(lambda: student.hidden_words(masked, mask, seen, labels)),
        "hidden words, teacher": torch.no_grad()(lambda: teacher.hidden_words(masked, mask, seen, labels)),
    }
    batch = {"image": image, "input_ids": input_ids, "attention_mask": mask, "ids": torch.arange(STEP_BATCH)}
    assert int((labels != IGNORE).sum()) > 0
    return learning(lambda: model(batch)["loss"]), passes


CASES = {"ours": itc_step, "plain": lambda: itc_step(peer=True)}


def rows():
    mine, plain = itc_step(), itc_step(peer=True)
    torch.testing.assert_close(mine(), plain())  # the same loss
    times = interleaved_ms(mine, plain, repeat=9)
    memory = [growth_in_a_fresh_process(__file__, case) for case in CASES]
    note = "goal: ratio 0.5, memory a tenth"
    yield Row("ITC 256 x 256, queues 65,536", times[0], "plain form", times[1], *memory, note)
    whole, passes = albef_steps()
    ours, *alone = interleaved_ms(whole, *passes.values(), repeat=15)
    shares = ", ".join(f"{name} {spent / sum(alone):.0%}" for name, spent in zip(passes, alone, strict=True))
    yield Row("ALBEF.tiny step, batch 64", ours, "its passes alone", sum(alone), note=f"goal: ratio 1.1; {shares}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    CASES[sys.argv[1]]()()  # warm up what a first call loads
    print(growth_mb(CASES[sys.argv[1]]()))
