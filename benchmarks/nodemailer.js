// Sends by nodemailer's pool. Reads a line of JSON for each task, answers with one:
// {port, ca, token, pool, threads, mode, count, seconds, size} -> {messages, cpu, seconds}
const nodemailer = require("nodemailer");
const fs = require("fs");
const readline = require("readline");

const pools = new Map();
function pool(task) {
  const key = JSON.stringify([task.port, task.pool]);
  if (!pools.has(key)) {
    pools.set(key, nodemailer.createTransport({
      pool: true, ...task.pool,
      host: "127.0.0.1", port: task.port, secure: false, requireTLS: true,
      auth: { user: "lettermint", pass: task.token },
      tls: { ca: fs.readFileSync(task.ca) },
    }));
  }
  return pools.get(key);
}

let number = 0;
const big = require("crypto").randomBytes(730000);
function mail(task) {
  number += 1;
  const line = "Hello dear reader, this is a line of text for you.\n";
  const message = {
    from: `sender${number % 7}@example.com`, to: `user${number}@example.org`,
    subject: `Subject ${number}`, text: line.repeat(task.size === "100 KB" ? 760 : 38),
  };
  if (task.size === "100 KB") {
    message.html = "<p>Hello dear reader, this is a line of text for you.</p>\n".repeat(1000);
  }
  if (task.size === "1 MB") message.attachments = [{ filename: "a.bin", content: big }];
  return message;
}

async function run(task) {
  const transport = pool(task);
  const cpu = process.cpuUsage();
  const start = process.hrtime.bigint();
  const elapsed = () => Number(process.hrtime.bigint() - start) / 1e9;
  let messages = 0;
  const one = async () => { await transport.sendMail(mail(task)); messages += 1; };
  if (task.mode === "list") {
    await Promise.all(Array.from({ length: task.count }, one));
  } else {
    const loop = async () => { do { await one(); } while (elapsed() < task.seconds); };
    const loops = task.mode === "threads" ? task.threads : 1;
    await Promise.all(Array.from({ length: loops }, loop));
  }
  const used = process.cpuUsage(cpu);
  return { messages, seconds: elapsed(), cpu: (used.user + used.system) / 1e6 };
}

const lines = readline.createInterface({ input: process.stdin });
(async () => {
  for await (const line of lines) {
    let answer;
    try { answer = await run(JSON.parse(line)); }
    catch (error) { answer = { error: String(error) }; }
    console.log(JSON.stringify(answer));
  }
  for (const each of pools.values()) each.close();
  process.exit(0);
})();
