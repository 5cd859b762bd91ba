// BullMQ on Redis: `node bullmq.js worker`, or `node bullmq.js PLAN` with the plan of tests/benchmarks/work.py as JSON.
// The same work, measured in the same way and told in the same lines.
const fs = require('fs');
const { Queue, QueueEvents, Worker } = require('bullmq');

const url = new URL(process.env.REDIS_URL);
const connection = { host: url.hostname, port: Number(url.port), maxRetriesPerRequest: null };
const PADDING = 'x'.repeat(215);
const payload = id => ({ id, kind: 'noop', user: 'u-000017', tags: ['a', 'b'], data: PADDING });
const work = given => ({ id: given.id, ok: true, worker: 'w-1', took: 0.0, data: given.data });
const seconds = () => Number(process.hrtime.bigint()) / 1e9;
const range = (from, count) => Array.from({ length: count }, (_, i) => from + i);
const split = (numbers, lanes) => range(0, lanes).map(lane => numbers.filter((_, i) => i % lanes === lane));
const percentile = (sorted, share) =>
  sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] : null;

function check(number, result) {
  if (result && result.id === number && result.data === PADDING) return;
  console.error(`wrong result of job ${number}:`, result);
  process.exit(1);
}

const ticks = (path, from, to) =>
  fs.readFileSync(path, 'utf8').split('\n')[0].split(')').pop().trim().split(/\s+/).slice(from, to).map(x => x / 100);

function spent(processes) {
  const own = process.cpuUsage();
  const times = { producer: (own.user + own.system) / 1e6 };
  for (const [name, pid] of Object.entries(processes))
    times[name] = ticks(`/proc/${pid}/stat`, 11, 15).reduce((a, b) => a + b);
  return times;
}

function machine() {
  const times = ticks('/proc/stat', 1, 9);
  const all = times.reduce((a, b) => a + b);
  return { all, busy: all - times[3] - times[4] };
}

function stopwatch(processes) {
  const before = spent(processes), then = machine(), start = seconds();
  return (phase, jobs, spans) => {
    const wall = seconds() - start, after = spent(processes), now = machine(), cpu = {};
    let ours = 0;
    for (const name in after) {
      ours += after[name] - before[name];
      cpu[name] = Math.round(1e6 * (after[name] - before[name]) / jobs);
    }
    const sorted = spans.map(span => span * 1e3).sort((a, b) => a - b);
    const foreign = Math.max(0, 100 * (now.busy - then.busy - ours) / Math.max(0.01, now.all - then.all));
    console.log('RESULT ' + JSON.stringify({
      phase, jobs, rate: jobs / wall, p50: percentile(sorted, 0.5), p99: percentile(sorted, 0.99), cpu, foreign,
    }));
  };
}

async function produce(plan) {
  const queue = new Queue('peer', { connection });
  const events = new QueueEvents('peer', { connection });
  await events.waitUntilReady();
  events.setMaxListeners(0);
  let next = 0;
  const numbers = count => range((next += count) - count, count);
  const submit = number => queue.add('noop', payload(number));

  async function loop(count, clients) {
    const spans = [];
    await Promise.all(split(numbers(count), clients).map(async own => {
      for (const number of own) {
        const start = seconds();
        check(number, await (await submit(number)).waitUntilFinished(events));
        spans.push(seconds() - start);
      }
    }));
    return spans;
  }

  async function flood(count) {
    const jobs = new Map(), lanes = split(numbers(count), plan.lanes);
    await Promise.all(lanes.map(async own => { for (const number of own) jobs.set(number, await submit(number)); }));
    await Promise.all(lanes.map(async own => {
      for (const number of own) check(number, await jobs.get(number).waitUntilFinished(events));
    }));
    return [];
  }

  await loop(plan.warm_up, 5);
  for (const [phase, count, clients] of [
    ['throughput', plan.throughput, 0], ['alone', plan.alone, 1], ['clients', plan.clients, plan.looping],
  ]) {
    if (!plan.phases.includes(phase)) continue;
    const stop = stopwatch(plan.processes);
    stop(phase, count, await (clients ? loop(count, clients) : flood(count)));
  }
  process.exit(0);
}

if (process.argv[2] === 'worker') new Worker('peer', async job => work(job.data), { connection, concurrency: 20 });
else produce(JSON.parse(process.argv[2]));
