# ruff: noqa: E501 - a twin reads best on one line
"""The code guard: unsafe snippets and their safe twins, fragments, fences, languages, time."""

import json
import time
from pathlib import Path

import pytest

from puna.guard import code
from puna.guard.code_python import scan

PAIRS = Path(__file__).parents[2].parent / "shared" / "data" / "safety" / "code_pairs" / "dev.jsonl"
TEMPORARY = "/" + "tmp"

# Language, CWE, unsafe, safe.
TWINS: tuple[tuple[str, str, str, str], ...] = (
    ("python", "CWE-78", "import os\nos.system('rm -r ' + name)", "import shutil\nshutil.rmtree(name)"),
    ("python", "CWE-78", "from subprocess import check_output as run\nrun(f'ls {d}', shell=True)", "from subprocess import run\nrun(['ls', d])"),
    ("python", "CWE-94", "def f(s):\n    return eval(s)", "import ast\ndef f(s):\n    return ast.literal_eval(s)"),
    ("python", "CWE-502", "import pickle as p\ndef f(b):\n    return p.loads(b)", "import json\ndef f(b):\n    return json.loads(b)"),
    ("python", "CWE-502", "import yaml\nyaml.load(f, Loader=yaml.Loader)", "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)"),
    ("python", "CWE-89", "q = f'SELECT * FROM u WHERE n = {n}'\ncur.execute(q)", "q = 'SELECT * FROM u WHERE n = ?'\ncur.execute(q, (n,))"),
    ("python", "CWE-89", "cur.execute('DELETE FROM t WHERE id=' + i)", "cur.execute('DELETE FROM t WHERE id=%s', (i,))"),
    ("python", "CWE-328", "import hashlib\nhashlib.new('sha1', b)", "import hashlib\nhashlib.new('sha256', b)"),
    ("python", "CWE-338", "import random\ndef otp():\n    return random.randint(0, 9999)", "import secrets\ndef otp():\n    return secrets.randbelow(10000)"),
    ("python", "CWE-295", "import ssl\nc = ssl._create_unverified_context()", "import ssl\nc = ssl.create_default_context()"),
    ("python", "CWE-295", "c.verify_mode = ssl.CERT_NONE", "c.verify_mode = ssl.CERT_REQUIRED"),
    ("python", "CWE-611", "from xml.etree import ElementTree as E\nE.fromstring(b)", "import defusedxml.ElementTree as E\nE.fromstring(b)"),
    ("python", "CWE-798", "PASSWORD = 'hunter2pass!'\n", "import os\nPASSWORD = os.environ['PASSWORD']\n"),
    ("python", "CWE-798", "connect(host='db', password='s3cr3t!9')", "connect(host='db', password=settings.password)"),
    ("python", "CWE-22", "def f(request):\n    return open('/srv/' + request.args['f']).read()", "import os\ndef f(request):\n    return open('/srv/' + os.path.basename(request.args['f'])).read()"),
    ("python", "CWE-327", "from Crypto.Cipher import AES\nAES.new(k, AES.MODE_ECB)", "from Crypto.Cipher import AES\nAES.new(k, AES.MODE_GCM)"),
    ("python", "CWE-327", "from Crypto.Cipher import DES\nDES.new(k, DES.MODE_CBC, iv)", "from Crypto.Cipher import AES\nAES.new(k, AES.MODE_EAX)"),
    ("python", "CWE-732", "import os\nos.chmod(p, 0o777)", "import os\nos.chmod(p, 0o600)"),
    ("python", "CWE-918", "import requests\ndef f(request):\n    return requests.get(request.args['u'])", "import requests\ndef f():\n    return requests.get('https://example.org')"),
    ("javascript", "CWE-78", "const { exec } = require('child_process');\nexec('ls ' + d);", "const { execFile } = require('child_process');\nexecFile('ls', [d]);"),
    ("javascript", "CWE-95", "const f = new Function('x', body);", "const f = (x) => x * 2;"),
    ("javascript", "CWE-79", "el.innerHTML = name;", "el.textContent = name;"),
    ("javascript", "CWE-338", "const token = Math.random().toString(36);", "const token = crypto.randomUUID();"),
    ("javascript", "CWE-89", "db.query('SELECT * FROM u WHERE n = ' + n, done);", "db.query('SELECT * FROM u WHERE n = ?', [n], done);"),
    ("javascript", "CWE-89", "db.query(`SELECT * FROM u WHERE n = ${n}`);", "db.query('SELECT * FROM u WHERE n = $1', [n]);"),
    ("javascript", "CWE-601", "app.get('/go', (req, res) => res.redirect(req.query.to));", "app.get('/go', (req, res) => res.redirect('/home'));"),
    ("javascript", "CWE-295", "const a = new https.Agent({ rejectUnauthorized: false });", "const a = new https.Agent({ keepAlive: true });"),
    ("javascript", "CWE-328", "crypto.createHash('md5').update(p).digest('hex');", "crypto.createHash('sha256').update(p).digest('hex');"),
    ("javascript", "CWE-345", "w.postMessage(secret, '*');", "w.postMessage(secret, 'https://example.org');"),
    ("javascript", "CWE-22", "fs.readFile(path.join(ROOT, req.params.f), cb);", "fs.readFile(path.join(ROOT, path.basename(req.params.f)), cb);"),
    ("c", "CWE-120", "char b[8];\nstrcpy(b, s);", "char b[8];\nsnprintf(b, sizeof b, \"%s\", s);"),
    ("c", "CWE-120", 'char n[16];\nscanf("%s", n);', 'char n[16];\nscanf("%15s", n);'),
    ("c", "CWE-78", "void f(char *c) { system(c); }", "void f(char *c) { execl(\"/bin/ls\", \"ls\", c, (char *)0); }"),
    ("c", "CWE-134", "void f(char *s) { printf(s); }", 'void f(char *s) { printf("%s", s); }'),
    ("c", "CWE-121", "void f(char *s, int n) {\n  char b[32];\n  memcpy(b, s, n);\n}", "void f(char *s) {\n  char b[32];\n  memcpy(b, s, sizeof b);\n}"),
    ("c", "CWE-416", "free(p);\nprintf(\"%d\", p->n);", "printf(\"%d\", p->n);\nfree(p);"),
    ("c", "CWE-415", "free(p);\nfree(p);", "free(p);\np = NULL;\nfree(q);"),
    ("c", "CWE-377", "char *n = tmpnam(0);", "FILE *f = tmpfile();"),
    ("c", "CWE-680", "int *a = malloc(n * m);", "int *a = calloc(n, m);"),
    ("cpp", "CWE-120", "char b[10];\nstd::cin >> b;", "std::string b;\nstd::cin >> b;"),
    ("cpp", "CWE-665", "std::auto_ptr<int> p(new int);", "auto p = std::make_unique<int>();"),
    ("cpp", "CWE-328", "unsigned char d[20];\nSHA1(m, n, d);", "unsigned char d[32];\nSHA256(m, n, d);"),
    ("java", "CWE-78", "Runtime.getRuntime().exec(\"ping \" + h);", "new ProcessBuilder(\"ping\", h).start();"),
    ("java", "CWE-328", "MessageDigest.getInstance(\"MD5\");", "MessageDigest.getInstance(\"SHA-256\");"),
    ("java", "CWE-502", "Object o = new ObjectInputStream(in).readObject();", "Item o = mapper.readValue(in, Item.class);"),
    ("java", "CWE-611", "DocumentBuilderFactory f = DocumentBuilderFactory.newInstance();", "DocumentBuilderFactory f = DocumentBuilderFactory.newInstance();\nf.setFeature(\"http://apache.org/xml/features/disallow-doctype-decl\", true);"),
    ("java", "CWE-295", "HostnameVerifier v = (h, s) -> true;", "HttpClient c = HttpClient.newHttpClient();"),
    ("java", "CWE-22", "File f = new File(\"/srv/\" + request.getParameter(\"f\"));", "File f = new File(\"/srv/a.txt\");"),
    ("java", "CWE-352", "http.csrf().disable();", "http.csrf(Customizer.withDefaults());"),
    ("java", "CWE-89", "String q = \"SELECT * FROM u WHERE n='\" + n + \"'\";\nst.executeQuery(q);", "PreparedStatement p = c.prepareStatement(\"SELECT * FROM u WHERE n=?\");"),
    ("csharp", "CWE-338", "var token = new Random().Next();", "var token = RandomNumberGenerator.GetInt32(10);"),
    ("csharp", "CWE-502", "var f = new BinaryFormatter();\nf.Deserialize(s);", "var o = JsonSerializer.Deserialize<Item>(s);"),
    ("csharp", "CWE-78", "Process.Start(\"cmd.exe\", \"/c \" + c);", "Process.Start(new ProcessStartInfo(\"git\") { ArgumentList = { \"log\" } });"),
    ("csharp", "CWE-611", "var r = new XmlTextReader(s);", "var r = XmlReader.Create(s, new XmlReaderSettings { DtdProcessing = DtdProcessing.Prohibit });"),
    ("csharp", "CWE-643", "doc.SelectNodes(\"//u[@n='\" + n + \"']\");", "doc.SelectNodes(\"//u\");"),
    ("csharp", "CWE-327", "var d = DES.Create();", "var d = Aes.Create();"),
    ("csharp", "CWE-89", "var q = $\"SELECT * FROM u WHERE n = '{n}'\";\nnew SqlCommand(q, c);", "new SqlCommand(\"SELECT * FROM u WHERE n = @n\", c);"),
    ("php", "CWE-89", "mysqli_query($c, \"SELECT * FROM u WHERE id = $id\");", "$s = $c->prepare('SELECT * FROM u WHERE id = ?');\n$s->bind_param('i', $id);"),
    ("php", "CWE-502", "$o = unserialize($_COOKIE['o']);", "$o = json_decode($_COOKIE['o'], true);"),
    ("php", "CWE-98", "include $_GET['page'] . '.php';", "include 'home.php';"),
    ("php", "CWE-22", "readfile('/srv/' . $_GET['f']);", "readfile('/srv/' . basename($_GET['f']));"),
    ("php", "CWE-328", "$h = md5($p);", "$h = password_hash($p, PASSWORD_DEFAULT);"),
    ("php", "CWE-338", "$t = mt_rand();", "$t = random_int(0, 999999);"),
    ("php", "CWE-95", "eval($_POST['c']);", "$f = ['a' => 'strlen'][$k];"),
    ("rust", "CWE-78", "Command::new(\"sh\").arg(\"-c\").arg(input).output();", "Command::new(\"ls\").arg(input).output();"),
    ("rust", "CWE-295", "Client::builder().danger_accept_invalid_certs(true)", "Client::builder().build()"),
    ("rust", "CWE-89", "let q = format!(\"SELECT * FROM u WHERE n = '{}'\", n);\nconn.execute(&q, []);", "conn.execute(\"SELECT * FROM u WHERE n = ?1\", [n]);"),
    ("rust", "CWE-328", "use sha1::Sha1;\nlet d = Sha1::digest(b);", "use sha2::Sha256;\nlet d = Sha256::digest(b);"),
    ("javascript", "CWE-1321", "function merge(a, b) { for (const k in b) { a[k] = b[k]; } return a; }", "function merge(a, b) { return { ...a, ...b }; }"),
    ("go", "CWE-295", "&tls.Config{InsecureSkipVerify: true}", "&tls.Config{MinVersion: tls.VersionTLS12}"),
)  # fmt: skip


@pytest.mark.parametrize(("language", "cwe", "unsafe", "safe"), TWINS)
def test_unsafe_code_is_named_and_its_safe_twin_passes(language: str, cwe: str, unsafe: str, safe: str) -> None:
    found = code.check(unsafe, language)
    assert found.action != "allow"
    assert cwe in found.codes
    assert code.check(safe, language).action == "allow", code.check(safe, language).spans


def test_development_pairs_reach_the_bars() -> None:
    if not PAIRS.exists():
        pytest.skip("the development pairs are not beside this checkout")
    rows = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    judged = [(row, code.check(row["code"], row["language"])) for row in rows]
    hits = [(row, verdict) for row, verdict in judged if verdict.action != "allow"]
    right = [(row, verdict) for row, verdict in hits if row["label"] == "insecure"]
    assert len(right) >= 0.85 * sum(row["label"] == "insecure" for row in rows)
    assert len(right) >= 0.95 * len(hits)
    assert sum(row["cwe"] in verdict.codes for row, verdict in right) >= 0.9 * len(right)


@pytest.mark.parametrize(
    "fragment",
    [
        "    return eval(text)\n",
        "x = 1\n    y = eval(text)\n",
        "def f(text):\n    return eval(text)\n\ndef g(",
        ">>> eval(text)\n",
        "Here it is:\n```python\ndef f(text):\n    return eval(text)\n```\nEnjoy.",
        "if ready:\n    eval(text)\nelse",
    ],
)
def test_fragments_that_do_not_parse_are_still_judged(fragment: str) -> None:
    assert "CWE-94" in code.check(fragment, "python").codes


def test_comments_and_strings_are_no_code() -> None:
    assert code.check("// gets(b) and strcpy(a, b) are gone\nint x;", "c").action == "allow"
    assert code.check('puts("never call gets(b)");', "c").action == "allow"
    assert code.check("# eval(text)\nprint('eval(text)')", "python").action == "allow"


def test_spans_point_at_the_fault_inside_a_fence() -> None:
    text = "Look:\n```c\nchar b[4];\ngets(b);\n```\n"
    (span, *_) = code.check(text).spans
    assert text[span.start : span.end].startswith("gets")
    assert span.fix


def test_exposed_keys_are_found_in_any_language() -> None:
    key = "AKIA" + "ABCDEFGH12345678"
    assert "CWE-798" in code.check(f"key: {key}", "yaml").codes
    assert "CWE-312" in code.check("-----BEGIN " + "PRIVATE KEY-----\nabc", "text").codes


@pytest.mark.parametrize("value", ["", "changeme", "<your password>", "${DB_PASSWORD}", "os.environ"])
def test_placeholders_are_no_credentials(value: str) -> None:
    assert code.check(f"password = {value!r}", "python").action == "allow"


def test_constants_make_a_call_safe() -> None:
    assert scan("import subprocess\nCOMMAND = 'ls -l'\nsubprocess.run(COMMAND, shell=True)") == []


def test_predictable_temporary_file_is_flagged() -> None:
    assert "CWE-377" in code.check(f"open('{TEMPORARY}/report.txt', 'w')", "python").codes


@pytest.mark.parametrize("language", ["python", "javascript", "c", "java", "csharp", "php", "rust"])
def test_long_code_takes_little_time(language: str) -> None:
    longest = max((twin for twin in TWINS if twin[0] == language), key=lambda twin: len(twin[3]))[3]
    text = (longest + "\n") * max(1, 6000 // len(longest))
    code.check(text, language)
    started = time.process_time()
    code.check(text, language)
    assert time.process_time() - started < 1.0, "6,000 characters; 20 ms are usual, the rest is for a busy machine"
