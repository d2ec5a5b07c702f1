// The demo page: joins a channel and shows what is published there, a chart of numbers that come from a shell, and a chat. Messages are put
// into the document as text only. How it stays connected is the business of wscast.js.
'use strict';

const kept = 200;          // messages shown, and lines of the chat
const shownText = 4096;    // characters of a text message shown
const shownBytes = 256;    // bytes of a binary message shown
const rateWindow = 5;      // seconds
const chartSpan = 120;     // seconds
const chartChannel = 'demo/vmstat';
const chatChannel = 'demo/chat'; // the one that clients may publish to: wscastd --demo

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search).get('channel');
const channel = asked === null || asked === '' ? 'default' : asked;
const valid = /^[A-Za-z0-9._:\/-]{1,128}$/.test(channel);

// One connection for everything, until the Disconnect button. The Connect button goes on behind the last messages there were.
let connection = null; // null while disconnected
let subscriptions = {};

let count = 0;
let arrived = [];      // [second, messages], the last rateWindow seconds
let waiting = [];      // messages not drawn yet, the newest last
let drawing = false;

function connect() {
	// Relative to the page, so that it works below a path of a proxy.
	connection = wscast.connect(new URL(document.body.dataset.websocket, location.href), { onstate: show });
	show('connecting', '');
	join(chartChannel, { since: chartSpan + 's' });
	join(chatChannel, { since: '1h' });
	join(channel, { onincomplete: () => show(connection.state, 'messages are missing: the log has no more of them') });
}

function join(name, options) {
	subscriptions[name] = connection.subscribe(name, receive, { ...options, id: subscriptions[name]?.id, onerror: (e) => show('closed', e.message) });
}

function disconnect() {
	const old = connection;
	connection = null;
	old.close();
}

function show(state, detail) {
	$('state').dataset.state = state;
	$('state-name').textContent = state;
	$('state-detail').textContent = detail;
	$('connect').textContent = connection ? 'Disconnect' : 'Connect';
}

function receive(message) {
	if (message.channel === chartChannel) sample(message);
	if (message.channel === chatChannel) hear(message);
	if (message.channel !== channel) return;
	count++;
	const second = Math.floor(performance.now() / 1000);
	const last = arrived[arrived.length - 1];
	if (last && last[0] === second) {
		last[1]++;
	} else {
		arrived.push([second, 1]);
	}
	// Only what can still be seen is kept until the next frame, which a page in the background may wait for a long time.
	waiting.push(message);
	if (waiting.length > kept) {
		waiting.shift();
	}
	if (!drawing) {
		drawing = true;
		requestAnimationFrame(draw);
	}
}

function draw() {
	drawing = false;
	const fresh = document.createDocumentFragment();
	for (const message of waiting.reverse()) {
		fresh.append(item(message));
	}
	waiting = [];
	const list = $('messages');
	list.prepend(fresh);
	while (list.childElementCount > kept) {
		list.lastElementChild.remove();
	}
	$('empty').hidden = list.childElementCount > 0;
	$('count').textContent = count.toLocaleString('en');
	drawRate();
}

function drawRate() {
	const now = performance.now() / 1000;
	arrived = arrived.filter(([second]) => second > now - rateWindow - 1);
	const messages = arrived.reduce((sum, [, n]) => sum + n, 0);
	const rate = messages / Math.min(rateWindow, Math.max(1, now));
	$('rate').textContent = rate >= 10 || rate === 0 ? Math.round(rate).toLocaleString('en') : rate.toFixed(1);
}

function item({ data, time }) {
	const text = typeof data === 'string';
	const about = element('div', clock(time));
	about.className = 'about';
	const size = text ? data.length : data.byteLength;
	about.append(element('span', text ? 'text' : 'binary, ' + bytes(size)));
	const body = element('pre', text ? data.slice(0, shownText) : hexDump(data.subarray(0, shownBytes)));
	const hidden = size - (text ? shownText : shownBytes);
	if (hidden > 0) {
		about.append(element('span', hidden.toLocaleString('en') + (text ? ' more characters' : ' more bytes') + ' not shown'));
	}
	const li = element('li', about, body);
	li.className = text ? 'text' : 'binary';
	return li;
}

function element(name, ...content) {
	const e = document.createElement(name);
	e.append(...content); // strings become text nodes
	return e;
}

function clock(time, exact = true) {
	const part = (n, width) => String(n).padStart(width, '0');
	const e = element('time', part(time.getHours(), 2) + ':' + part(time.getMinutes(), 2) + (exact ? ':' + part(time.getSeconds(), 2) + '.' + part(time.getMilliseconds(), 3) : ''));
	e.dateTime = time.toISOString();
	return e;
}

function bytes(n) {
	return n.toLocaleString('en') + (n === 1 ? ' byte' : ' bytes');
}

// As hexdump -C: offset, 16 bytes, and those of them that are printable ASCII.
function hexDump(data) {
	const lines = [];
	for (let at = 0; at < data.length; at += 16) {
		const row = Array.from(data.subarray(at, at + 16));
		const hex = row.map((b) => b.toString(16).padStart(2, '0')).join(' ');
		const ascii = row.map((b) => (b >= 0x20 && b < 0x7f ? String.fromCharCode(b) : '.')).join('');
		lines.push(at.toString(16).padStart(4, '0') + '  ' + hex.padEnd(47) + '  ' + ascii);
	}
	return lines.join('\n');
}

// A line of vmstat(8). Which numbers are which is said by a line before them.
const columns = { us: 12, sy: 13, wa: 15 };
let samples = [];
let redrawing = false;

function sample({ data, time }) {
	const words = String(data).trim().split(/\s+/);
	if (words.includes('us')) {
		for (const name in columns) columns[name] = words.indexOf(name);
		return;
	}
	const [user, system, wait] = Object.values(columns).map((i) => Number(words[i]));
	if (!(user >= 0 && system >= 0 && wait >= 0)) return; // another headline
	samples.push({ at: time.getTime() / 1000, user, system, wait });
	if (!redrawing) {
		redrawing = true;
		requestAnimationFrame(drawChart);
	}
}

// Areas one on the other, drawn from the highest one down. The newest number is at the right, whatever the clock of this machine says.
function drawChart() {
	redrawing = false;
	const last = samples[samples.length - 1];
	samples = samples.filter(({ at }) => at > last.at - chartSpan);
	const x = ({ at }) => (600 * (1 - (last.at - at) / chartSpan)).toFixed(1);
	const area = (height) => x(samples[0]) + ',160 ' + samples.map((s) => x(s) + ',' + (160 - 1.6 * height(s)).toFixed(1)).join(' ') + ' 600,160';
	$('area-user').setAttribute('points', area((s) => s.user));
	$('area-system').setAttribute('points', area((s) => s.user + s.system));
	$('area-wait').setAttribute('points', area((s) => s.user + s.system + s.wait));
	$('now-user').textContent = last.user + ' %';
	$('now-system').textContent = last.system + ' %';
	$('now-wait').textContent = last.wait + ' %';
}

function hear({ data, time }) {
	const [, name, text] = /^([^:]{1,30}): ([^]*)$/.exec(String(data)) || [null, '', String(data)];
	const list = $('chat');
	const below = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
	list.append(element('li', clock(time, false), element('b', name), text.slice(0, shownText)));
	while (list.childElementCount > kept) list.firstElementChild.remove();
	if (below) list.scrollTop = list.scrollHeight;
	$('chat-empty').hidden = true;
}

function say(event) {
	event.preventDefault();
	const text = $('text');
	if (!connection) {
		$('chat-error').textContent = 'not connected';
		return;
	}
	connection.publish(chatChannel, $('name').value.replaceAll(':', '') + ': ' + text.value).then(() => {
		$('chat-error').textContent = '';
		text.value = '';
	}, (e) => { $('chat-error').textContent = e.message; }); // what was typed stays
}

// The commands to publish with, for this channel and the daemon's socket.
function showPublish() {
	const path = document.body.dataset.socket;
	// A shell takes anything in single quotes as it is, but for a single quote.
	const socketPath = /^[A-Za-z0-9._\/-]+$/.test(path) ? path : "'" + path.replaceAll("'", "'\\''") + "'";
	const option = path === '/run/wscast/publish.sock' ? '' : '--socket ' + socketPath + ' ';
	for (const command of [
		'wscast publish ' + option + channel + ' hello',
		'redis-cli -s ' + socketPath + ' PUBLISH ' + channel + ' hello',
		"echo 'PUBLISH " + channel + " hello' | nc -U -N " + socketPath,
	]) {
		$('publish').append(commandItem(command));
	}
	$('chart-command').append(commandItem('vmstat -n 1 | wscast publish ' + option + '--lines ' + chartChannel));
}

function commandItem(command) {
	const li = element('li', element('code', command));
	// Only https and localhost have a clipboard (Secure Contexts).
	if (navigator.clipboard) {
		const copy = element('button', 'Copy');
		copy.type = 'button';
		copy.setAttribute('aria-label', 'Copy: ' + command);
		copy.onclick = () => navigator.clipboard.writeText(command).then(() => {
			copy.textContent = 'Copied';
			setTimeout(() => { copy.textContent = 'Copy'; }, 1500);
		});
		li.append(copy);
	}
	return li;
}

$('channel').value = channel;
$('clear').onclick = () => {
	waiting = [];
	count = 0;
	arrived = [];
	$('messages').replaceChildren();
	draw();
};

if (valid) {
	document.title = channel + ' · wscast';
	showPublish();
	$('connect').onclick = () => (connection ? disconnect() : connect());
	$('name').value = 'guest ' + (1 + Math.floor(Math.random() * 99));
	$('say').onsubmit = say;
	setInterval(drawRate, 1000);
	connect();
} else {
	$('connect').hidden = true;
	show('closed', 'not a channel: a name has 1 to 128 letters, digits and . _ - : /');
}
