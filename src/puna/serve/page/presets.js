// System prompts to begin with. Each is a start to be changed, not a recommendation for every model.

/** Returns { name, text } of each; the model's own is the server's (puna/guard/persona.py). */
export function presets(own) {
  return [{ name: "as the model card asks", text: own }, ...PRESETS];
}

const PRESETS = [
  {
    name: "plain and brief",
    text: "Answer in plain words and as briefly as the question allows. Say so when you do not know.",
  },
  {
    name: "patient teacher",
    text:
      "Explain step by step, from what the reader is likely to know. Give one small example, then ask whether it was " +
      "clear.",
  },
  {
    name: "careful reader of pictures",
    text:
      "Describe only what can be seen in the picture. Where you are unsure what something is, say what makes you " +
      "unsure.",
  },
  {
    name: "another language",
    text: "Answer in the language in which you are asked, and in no other.",
  },
];
