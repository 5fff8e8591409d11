# Reads length-prefixed messages and answers what Email::MIME finds in each, as JSON.
use strict;
use warnings;
use Email::Address::XS;
use Email::MIME;
use Email::MIME::ContentType;
use JSON::PP;
use MIME::Base64 qw(encode_base64);

binmode STDIN;
$| = 1;
my $json = JSON::PP->new->ascii->canonical;

sub mailboxes {
    my ($mail, $name) = @_;
    my $value = $mail->header_raw($name);
    return [] unless defined $value;
    return [ map { { name => decoded($_->phrase), address => $_->address } }
             Email::Address::XS->parse($value) ];
}

sub decoded {
    my ($text) = @_;
    return '' unless defined $text;
    return Email::MIME::Encode::maybe_mime_decode_header('Subject', $text);
}

sub part {
    my ($part) = @_;
    my ($type) = split /;/, ($part->content_type // 'text/plain');
    my ($charset) = ($part->content_type // '') =~ /charset="?([^";]+)/i;
    # filename() takes a file of the name 0 for one without a name.
    my $disposition = parse_content_disposition($part->header('Content-Disposition') // '');
    my $name = $disposition->{attributes}{filename};
    my %found = (type => lc $type, name => $name, charset => $charset);
    my @parts = $part->subparts;
    if (@parts && $type =~ m{^multipart/}i) {
        $found{parts} = [ map { part($_) } @parts ];
    } else {
        $found{content} = encode_base64($part->body, '');
    }
    return \%found;
}

while (read(STDIN, my $length, 4) == 4) {
    read(STDIN, my $octets, unpack('N', $length));
    my $answer = eval {
        my $mail = Email::MIME->new($octets);
        my @names = $mail->header_names;
        {
            subject => $mail->header_str('Subject'),
            addresses => { map { $_ => mailboxes($mail, $_) } qw(From To Cc Reply-To) },
            headers => { map { lc $_ => $mail->header_raw($_) } @names },
            texts => { map { lc $_ => $mail->header_str($_) } grep { /^x-/i } @names },
            body => part($mail),
        };
    } || { error => "$@" };
    print $json->encode($answer), "\n";
}
