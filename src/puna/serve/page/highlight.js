// Code to coloured pieces: comments, strings, numbers, the words that most languages reserve. A hint for the eye, not a
// parser: it knows no grammar and may be wrong inside unusual ones.

const HASH = new Set(["python", "py", "bash", "sh", "shell", "yaml", "yml", "toml", "ruby", "rb", "r", "perl", "make"]);
const PLAIN = new Set(["", "text", "txt", "plain", "markdown", "md", "console", "diff"]);
const WORDS = new Set(
  (
    "abstract and as assert async await break case catch class const continue def default defer del do elif else " +
    "enum except export extends extern false finally fn for from func function go if impl implements import in " +
    "interface is lambda let loop match mod module mut new nil none not null or package pass private protected " +
    "pub public raise return self static struct super switch this throw trait true try type typeof union use " +
    "using var void where while with yield select insert update delete join on group order by limit create table " +
    "values set into end then fi done"
  ).split(" "),
);

const STRINGS = [
  String.raw`"""[^]*?(?:"""|$)`,
  String.raw`'''[^]*?(?:'''|$)`,
  String.raw`"(?:\\.|[^"\\\n])*"?`,
  String.raw`'(?:\\.|[^'\\\n])*'?`,
  "`(?:\\\\.|[^`\\\\])*`?",
];

/** Returns [kind, text] pairs whose texts, joined, are `code`; kind is comment, string, number, word or null. */
export function highlight(code, language) {
  if (PLAIN.has(language)) return [[null, code]];
  const comment = HASH.has(language) ? "#[^\\n]*" : language === "sql" ? "--[^\\n]*" : "//[^\\n]*|/\\*[^]*?(?:\\*/|$)";
  const pattern = new RegExp(`(${comment})|(${STRINGS.join("|")})|(\\b\\d[\\w.]*)|([A-Za-z_]\\w*)`, "g");
  const pieces = [];
  let at = 0;
  for (const match of code.matchAll(pattern)) {
    const kind = kindOf(match);
    if (kind === null) continue;
    if (match.index > at) pieces.push([null, code.slice(at, match.index)]);
    pieces.push([kind, match[0]]);
    at = match.index + match[0].length;
  }
  if (at < code.length) pieces.push([null, code.slice(at)]);
  return pieces;
}

function kindOf([text, comment, string, number]) {
  if (comment !== undefined) return "comment";
  if (string !== undefined) return "string";
  if (number !== undefined) return "number";
  return WORDS.has(text.toLowerCase()) ? "word" : null;
}
