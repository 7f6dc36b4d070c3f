// SPDX-License-Identifier: GPL-2.0-or-later
//! Streams on a guest's ports as they really come: cut anywhere, damaged, begun by nobody, and
//! broken off in the middle by an agent's death. `PROPTEST_CASES` makes the search longer.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Line, Receiver, harm};
use kzt_wire::port::{
    self, AgentEvent, AgentReceiver, Hello, HostEvent, HostReceiver, MAX_FRAME, ReportReceiver,
    Sender, Welcome,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const NONCE: u64 = 0x5eed;
const HELLO: Hello = Hello {
    max_frame: MAX_FRAME,
    flags: 0,
    nonce: NONCE,
};
const WELCOME: Welcome = Welcome {
    max_frame: MAX_FRAME,
    flags: 0,
    swap_bytes: 1 << 30,
};

/// What an end has been told, with what it was told owned.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Session(u64),
    Data(Vec<u8>),
    Nonce(u64),
    Stranger,
    Lost,
}

impl Receiver for HostReceiver {
    type Told = Told;
    const BUFFER: usize = MAX_FRAME;

    fn step(&mut self, input: &[u8]) -> (usize, Option<Told>) {
        let step = self.next(input);
        (step.taken, step.event.map(Told::from))
    }

    fn silence(&mut self, input: &[u8]) -> (usize, Option<Told>) {
        let step = self.stalled(input);
        (step.taken, step.event.map(Told::from))
    }
}

/// An agent that begins sessions [`Agent::FIRST`] and what follows as it loses them.
struct Agent {
    receiver: AgentReceiver,
    session: u64,
}

impl Agent {
    /// No content names it, nor the next ones, for they are drawn.
    const FIRST: u64 = 1 << 50;

    fn new() -> Self {
        let mut agent = Self {
            receiver: AgentReceiver::default(),
            session: Self::FIRST - 1,
        };
        agent.begin();
        agent
    }

    fn begin(&mut self) {
        self.session += 1;
        self.receiver.begin(self.session);
    }

    fn told(&mut self, event: AgentEvent<'_>) -> Told {
        match event {
            AgentEvent::Nonce(nonce) => Told::Nonce(nonce),
            AgentEvent::Welcome(_) => Told::Session(self.session),
            AgentEvent::Data(data) => Told::Data(data.to_vec()),
            AgentEvent::Lost(_) => {
                self.begin();
                Told::Lost
            }
        }
    }
}

impl Receiver for Agent {
    type Told = Told;
    const BUFFER: usize = MAX_FRAME;

    fn step(&mut self, input: &[u8]) -> (usize, Option<Told>) {
        let step = self.receiver.next(input);
        (step.taken, step.event.map(|event| self.told(event)))
    }

    fn silence(&mut self, input: &[u8]) -> (usize, Option<Told>) {
        let step = self.receiver.stalled(input);
        (step.taken, step.event.map(|event| self.told(event)))
    }
}

impl Receiver for ReportReceiver {
    type Told = Told;
    const BUFFER: usize = MAX_FRAME;

    fn step(&mut self, input: &[u8]) -> (usize, Option<Told>) {
        let step = self.next(input);
        let told = step.event.map(|frame| Told::Data(frame.payload.to_vec()));
        (step.taken, told)
    }

    fn silence(&mut self, input: &[u8]) -> (usize, Option<Told>) {
        let step = self.stalled(input);
        let told = step.event.map(|frame| Told::Data(frame.payload.to_vec()));
        (step.taken, told)
    }
}

impl From<HostEvent<'_>> for Told {
    fn from(event: HostEvent<'_>) -> Self {
        match event {
            HostEvent::Hello { session, .. } => Self::Session(session),
            HostEvent::Data(data) => Self::Data(data.to_vec()),
            HostEvent::Stranger => Self::Stranger,
            HostEvent::Lost(_) => Self::Lost,
        }
    }
}

fn line() -> Line<HostReceiver> {
    Line::new(HostReceiver::new(NONCE))
}

impl<R: Receiver<Told = Told>> Line<R> {
    /// The sessions that have begun.
    fn sessions(&self) -> Vec<u64> {
        let sessions = self.told.iter().filter_map(|told| match told {
            Told::Session(number) => Some(*number),
            _ => None,
        });
        sessions.collect()
    }

    /// The payload of the last session, and its number; `None` when it is over.
    fn session(&self) -> Option<(u64, Vec<Vec<u8>>)> {
        let last = |told: &Told| !matches!(told, Told::Data(_));
        let at = self.told.iter().rposition(last)?;
        let Told::Session(number) = self.told[at] else {
            return None;
        };
        let data = self.told[at + 1..].iter().map(|told| match told {
            Told::Data(data) => data.clone(),
            _ => unreachable!(),
        });
        Some((number, data.collect()))
    }
}

/// A whole session as the agent sends it, or as the host does.
fn session(number: u64, payloads: &[Vec<u8>], from_host: bool) -> Vec<u8> {
    let beginning = if from_host {
        port::welcome(number, &WELCOME).to_vec()
    } else {
        port::hello(number, &HELLO).to_vec()
    };
    begun(beginning, number, payloads)
}

/// A session as somebody may put it into a page who does not know the nonce.
fn forged(number: u64, nonce: u64) -> Vec<u8> {
    let hello = port::hello(number, &Hello { nonce, ..HELLO });
    begun(hello.to_vec(), number, &[b"evil".to_vec()])
}

fn begun(beginning: Vec<u8>, number: u64, payloads: &[Vec<u8>]) -> Vec<u8> {
    let mut sender = Sender::new(number);
    let mut out = beginning;
    for payload in payloads {
        out.extend(sender.data(payload));
        out.extend(payload);
    }
    out
}

fn reports(number: u64, payloads: &[Vec<u8>]) -> Vec<u8> {
    let mut sender = Sender::new(number);
    let frame = |payload: &Vec<u8>| [&sender.stats(payload)[..], payload].concat();
    payloads.iter().flat_map(frame).collect()
}

/// Payloads as guests can make them: bytes of any kind, and whole frames, but for what is drawn.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let other = any::<u64>().prop_filter("the nonce", |nonce| *nonce != NONCE);
    prop_oneof![
        4 => vec(any::<u8>(), 1..300),
        1 => (1usize..port::MAX_PAYLOAD, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        1 => Just(b"KZTPKZTPKZTP".to_vec()),
        2 => (1u64..5, other).prop_map(|(number, nonce)| forged(number, nonce).repeat(2)),
        1 => (1u64..5).prop_map(|number| session(number, &[b"page".to_vec()], true)),
        1 => any::<u64>().prop_map(|nonce| port::reset(nonce).to_vec()),
    ]
}

fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(payload(), 0..6)
}

fn told(number: u64, payloads: &[Vec<u8>]) -> Vec<Told> {
    let data = payloads.iter().cloned().map(Told::Data);
    [Told::Session(number)].into_iter().chain(data).collect()
}

proptest! {
    #[test]
    fn any_cutting_of_a_stream_says_the_same(
        first in payloads(), second in payloads(), cuts in vec(1usize..5000, 1..20)
    ) {
        let mut host = line();
        let stream = [session(7, &first, false), session(8, &second, false)].concat();
        host.feed_cut(&stream, &cuts);
        prop_assert_eq!(&host.told, &[told(7, &first), told(8, &second)].concat());

        let mut agent = Line::new(Agent::new());
        agent.feed_cut(&session(Agent::FIRST, &first, true), &cuts);
        prop_assert_eq!(&agent.told, &told(Agent::FIRST, &first));

        let mut control = Line::new(ReportReceiver::default());
        let (first, second): (Vec<_>, Vec<_>) = (small(first), small(second));
        control.feed_cut(&[reports(1, &first), reports(2, &second)].concat(), &cuts);
        let wanted = first.into_iter().chain(second).map(Told::Data).collect::<Vec<_>>();
        prop_assert_eq!(&control.told, &wanted);
    }

    #[test]
    fn garbage_in_front_is_passed_over(
        garbage in vec(any::<u8>(), 0..3000), half in payload(), sent in payloads()
    ) {
        // The tail of a frame somebody else had begun: a page, as likely as not.
        let garbage = [garbage, half[half.len() / 2..].to_vec()].concat();
        let mut host = line();
        host.feed(&garbage);
        host.feed(&session(7, &sent, false));
        host.silence();
        prop_assert_eq!(host.session(), Some((7, sent.clone())));
        prop_assert_eq!(host.sessions(), [7]);

        let mut agent = Line::new(Agent::new());
        agent.feed(&garbage);
        agent.feed(&session(Agent::FIRST, &sent, true));
        prop_assert_eq!(agent.session(), Some((Agent::FIRST, sent)));
        prop_assert_eq!(agent.sessions(), [Agent::FIRST]);
    }

    #[test]
    fn what_is_passed_on_of_a_damaged_stream_is_how_it_began(
        sent in payloads(), harms in vec(harm(payload()), 1..4), next in payloads()
    ) {
        let mut stream = session(1 << 40, &sent, false);
        for harm in &harms {
            harm.apply(&mut stream);
        }
        let mut host = line();
        host.feed(&stream);
        host.silence();
        let begun = host.told.iter().position(|told| *told == Told::Session(1 << 40));
        let begun = begun.map_or(host.told.len(), |at| at + 1);
        let of_session = host.told[begun..].iter().map_while(|told| match told {
            Told::Data(data) => Some(data),
            _ => None,
        });
        for (got, sent) in of_session.zip(&sent) {
            prop_assert_eq!(got, sent);
        }
        // Whatever it was, the next session is found.
        hello(&mut host, 1 << 41, &next);
        prop_assert_eq!(host.session(), Some((1 << 41, next.clone())));
        // And nothing that was put in has begun one.
        prop_assert!(host.sessions().iter().all(|number| *number >= 1 << 40));

        let mut agent = Line::new(Agent::new());
        let mut stream = session(Agent::FIRST, &sent, true);
        for harm in &harms {
            harm.apply(&mut stream);
        }
        agent.feed(&stream);
        prop_assert_eq!(welcome(&mut agent, &next), Some(next.clone()));
        prop_assert!(agent.sessions().iter().all(|number| *number >= Agent::FIRST));
    }

    /// For long runs: nothing any bytes do is a panic or a full buffer without progress.
    #[test]
    fn any_bytes_leave_every_end_ready_for_the_next_session(
        pieces in vec(prop_oneof![payload().boxed(), piece().boxed()], 0..12), silent in vec(any::<bool>(), 12)
    ) {
        let mut host = line();
        let mut agent = Line::new(Agent::new());
        let mut control = Line::new(ReportReceiver::default());
        for (piece, silent) in pieces.iter().zip(silent) {
            host.feed(piece);
            agent.feed(piece);
            control.feed(piece);
            if silent {
                host.silence();
                agent.silence();
                control.silence();
            }
        }
        hello(&mut host, 1 << 40, &[b"page".to_vec()]);
        prop_assert_eq!(host.session(), Some((1 << 40, vec![b"page".to_vec()])));
        control.feed(&reports(1 << 40, &[b"{}".to_vec()]));
        while !control.buffer.is_empty() {
            let before = control.buffer.len();
            control.silence();
            if control.buffer.len() == before { break }
        }
        prop_assert_eq!(control.told.last(), Some(&Told::Data(b"{}".to_vec())));
        let sent = vec![b"page".to_vec()];
        prop_assert_eq!(welcome(&mut agent, &sent), Some(sent.clone()));
    }
}

/// A session of an agent that waits for its welcome before it sends anything else.
fn hello(host: &mut Line<HostReceiver>, number: u64, payloads: &[Vec<u8>]) {
    let stream = session(number, payloads, false);
    let (hello, data) = stream.split_at(port::HELLO_LENGTH);
    // A frame that broke off may have been completed by the first HELLO's first bytes, and rightly.
    for _ in 0..2 {
        host.feed(hello);
        host.silence();
    }
    host.feed(data);
}

/// What an agent has received in the end from a host that has begun anew and answers its HELLOs.
fn welcome(agent: &mut Line<Agent>, payloads: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    agent.feed(&port::reset(NONCE));
    agent.silence();
    let mut answered = 0;
    while answered != agent.receiver.session {
        answered = agent.receiver.session;
        agent.feed(&session(answered, payloads, true));
        agent.silence();
    }
    agent.session().map(|(_, data)| data)
}

/// Frames that are well made and make no sense where they come.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let numbers = prop_oneof![1u64..4, Agent::FIRST..Agent::FIRST + 4];
    (numbers, any::<bool>(), payloads(), any::<Index>()).prop_map(
        |(number, from_host, payloads, from)| {
            let whole = session(number, &payloads, from_host);
            whole[from.index(whole.len())..].to_vec()
        },
    )
}

fn small(payloads: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let fits = |payload: &Vec<u8>| payload.len() <= port::MAX_REPORT;
    payloads.into_iter().filter(fits).collect()
}

/// Payloads that show where a frame was cut, one of them a page that looks like a HELLO.
fn dying_words() -> Vec<Vec<u8>> {
    let look_alike = forged(666, 0).repeat(3);
    vec![vec![1; 100], look_alike, (0..=255).collect(), vec![2; 900]]
}

#[test]
fn a_host_survives_an_agents_death_at_every_byte() {
    let (old, new) = (dying_words(), vec![vec![3; 50], vec![4; 2000]]);
    let dying = session(7, &old, false);
    for cut in 0..=dying.len() {
        let mut host = line();
        host.feed(&dying[..cut]);
        assert!(told(7, &old).starts_with(&host.told), "cut at {cut}");
        host.feed(&port::hello(8, &HELLO));
        host.silence();
        // The agent may have been answered by a RESET: it begins once more.
        let number = match host.session() {
            Some((8, _)) => 8,
            _ => 9,
        };
        host.feed(&session(number, &new, false));
        host.silence();
        assert_eq!(host.session(), Some((number, new.clone())), "cut at {cut}");
        assert!(!host.sessions().contains(&666), "cut at {cut}");
    }
}

#[test]
fn a_new_agents_hello_is_found_wherever_the_old_one_died() {
    // Without look-alikes the silence is enough, whatever had come.
    let old = [vec![1; 100], (0..=255).collect(), vec![2; 900]];
    let dying = session(7, &old, false);
    for cut in 0..=dying.len() {
        let mut host = line();
        host.feed(&dying[..cut]);
        host.silence();
        host.feed(&port::hello(8, &HELLO));
        host.silence();
        assert_eq!(host.session(), Some((8, vec![])), "cut at {cut}");
    }
}

#[test]
fn an_agent_survives_a_hosts_death_at_every_byte() {
    let (old, new) = (dying_words(), vec![vec![3; 50], vec![4; 2000]]);
    let dying = session(Agent::FIRST, &old, true);
    for cut in 0..=dying.len() {
        let mut agent = Line::new(Agent::new());
        agent.feed(&dying[..cut]);
        // The new host's first words, and nothing more until the agent speaks.
        agent.feed(&port::reset(NONCE));
        agent.silence();
        let number = agent.receiver.session;
        agent.feed(&session(number, &new, true));
        assert_eq!(agent.session(), Some((number, new.clone())), "cut at {cut}");
    }
}

#[test]
fn reports_survive_an_agents_death_at_every_byte() {
    let dying = reports(7, &[vec![b'x'; 100], vec![b'y'; 2000]]);
    for cut in 0..=dying.len() {
        let mut control = Line::new(ReportReceiver::default());
        control.feed(&dying[..cut]);
        control.feed(&reports(8, &[b"{}".to_vec()]));
        control.silence();
        assert_eq!(
            control.told.last(),
            Some(&Told::Data(b"{}".to_vec())),
            "cut at {cut}"
        );
    }
}
