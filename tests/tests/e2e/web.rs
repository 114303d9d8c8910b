//! curl, by address and by name.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use shuttle_tests::nameserver::{Nameserver, ResolvConf};
use shuttle_tests::shuttle::exit_code;
use shuttle_tests::{Host, Lab, Method, Options, Run, addr, by_each_method};

use crate::{END, connect, lan_if_possible, nothing_stays, wait_until};

by_each_method!(curl_fetches_by_address_and_by_name);

/// The router's nameserver, as in its resolv.conf. No host has the address.
const NS: &str = "10.99.9.9";
/// A record that only the remote resolver knows.
const RECORD: &str = "--host-record=web.remote.test,10.78.0.2,fd78::2";
const LENGTH: usize = 4 << 20;

/// Python's web server, with one file. Dropping it ends it.
struct Web {
    child: Child,
    file: Vec<u8>,
    log: PathBuf,
}

impl Web {
    fn start(lab: &Lab) -> Result<Web> {
        let (folder, log) = (lab.dir().join("www"), lab.dir().join("www.log"));
        fs::create_dir(&folder)?;
        let file: Vec<u8> =
            (0..LENGTH as u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        fs::write(folder.join("file"), &file)?;
        let mut command = lab.target.command("python3");
        command.args(["-m", "http.server", "80", "--bind", "::", "--directory"]).arg(&folder);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?).spawn()?;
        let web = Web { child, file, log };
        wait_until("the web server answers", || {
            lab.target.output("curl", &["-sS", "http://127.0.0.1/"]).is_ok()
        })?;
        Ok(web)
    }

    /// Fetches the file from `host` by `url`. It must come from `address`, and the ssh server must request it.
    fn fetch(&self, host: &Host, args: &[&str], address: &str) -> Result<()> {
        let before = fs::read_to_string(&self.log)?.len();
        let told = "%{stderr}%{remote_ip} %{http_code}";
        let mut curl = host.command("curl");
        let output = curl.args(["-sS", "--max-time", "20", "--write-out", told]).args(args).output()?;
        let says = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && says == format!("{address} 200"), "{}: {says}", output.status);
        ensure!(output.stdout == self.file, "{} bytes that differ", output.stdout.len());
        let log = fs::read_to_string(&self.log)?.split_off(before);
        let server = if address.contains(':') {
            addr::SERVER_INNER6.to_string()
        } else {
            addr::SERVER_INNER.to_ipv6_mapped().to_string()
        };
        ensure!(log.starts_with(&format!("{server} ")), "not asked for by the ssh server: {log}");
        Ok(())
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn curl_fetches_by_address_and_by_name(method: Method) -> Result<()> {
    let lab = Lab::with(Options { lan: true, ..Options::default() })?;
    let web = Web::start(&lab)?;
    let _resolver = Nameserver::dnsmasq(&lab, &lab.server, "127.0.0.1:53".parse()?, &[RECORD])?;
    ResolvConf::new(&lab, &lab.server, &["127.0.0.1"])?;
    ResolvConf::new(&lab, &lab.client, &[NS])?;
    let lan_conf = ResolvConf::new(&lab, lab.lan()?, &[NS])?;
    // The router's own nameserver for its LAN, as in home routers.
    let upstream = format!("--server={NS}");
    let _router = Nameserver::dnsmasq(&lab, &lab.client, "10.76.0.1:53".parse()?, &[&upstream])?;
    let lan = lan_if_possible(method);
    let args = [&["--dns", "10.78.0.0/24", "fd78::/64"], lan].concat();
    let mut shuttle = connect(&lab, Run::remote(&args).by(method))?;
    let check = |name: &str, host: &Host| -> Result<()> {
        for (args, address) in [
            (&["http://10.78.0.2/file"][..], "10.78.0.2"),
            (&["http://[fd78::2]/file"], "fd78::2"),
            (&["-4", "http://web.remote.test/file"], "10.78.0.2"),
            (&["-6", "http://web.remote.test/file"], "fd78::2"),
        ] {
            let fetched = web.fetch(host, args, address);
            fetched.with_context(|| format!("{name}: curl {args:?}\n{}", shuttle.stderr()))?;
        }
        Ok(())
    };
    check("the client", &lab.client)?;
    if !lan.is_empty() {
        check("behind it, with the same nameserver", lab.lan()?)?;
        lan_conf.set(&["10.76.0.1"])?;
        check("behind it, with the router's nameserver", lab.lan()?)?;
    }
    shuttle.signal(Signal::SIGINT)?;
    let code = exit_code(shuttle.wait(END)?);
    ensure!(code == 0, "exit code {code} after Ctrl-C\n{}", shuttle.stderr());
    let output = lab.client.command("curl").args(["-sS", "http://web.remote.test/file"]).output()?;
    ensure!(!output.status.success(), "without shuttle the name is known");
    nothing_stays(&lab)
}
